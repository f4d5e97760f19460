"""Says where the time, the memory and the operations of one call go: stages, operators, bytes alive, traces."""
