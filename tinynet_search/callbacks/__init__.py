"""Ray Tune callbacks of a search: progress, metrics, hanging trials, crashes, placement groups.

Called by the driver of a search and by trainings on Ray.
"""
