"""The harness: sweeps, measures and compares Mixture-of-Experts layers, and reports what it found."""
