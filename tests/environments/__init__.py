"""Tests with the software that companies run around a fleet, from Debian's packages.

Run by `make environments`.
"""
