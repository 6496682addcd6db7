"""What Ray starts on a cluster: see ``entry``."""

from tinynet_search.jobs.entry import main

main()
