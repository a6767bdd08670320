"""SWOP: a site's node that does the tasks of a taskrunner."""
