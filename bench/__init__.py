"""Measurements. Figures in docs/ come from these commands; compare only figures of one run."""
