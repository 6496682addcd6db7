"""The search driver: runs trials on Ray Tune, derives results from them and retries failed trials.

Called by ``tinynet search`` and by submitted search jobs.
"""
