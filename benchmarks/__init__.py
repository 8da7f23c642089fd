"""Measurements, each beside a yardstick of the same run. ``make bench`` runs them all."""
