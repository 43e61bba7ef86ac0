"""Breaks: one-line bugs that the tests have to catch, whatever the suite is cut to."""
