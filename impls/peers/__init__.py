"""Other people's Mixture-of-Experts layers as implementations: their own code, on our weights and our routing."""
