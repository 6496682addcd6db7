"""Ray Tune callbacks that watch a search: its progress, its metrics, hanging trials, crashes, leftovers."""
