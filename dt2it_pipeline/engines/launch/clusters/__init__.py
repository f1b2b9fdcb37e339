"""Jobs on a cluster: Slurm or Kubernetes starts them, and a guard on this machine waits."""
