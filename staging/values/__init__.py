"""A values file of either chart: what it says, what is wrong with it, and where its pins go. No I/O."""
