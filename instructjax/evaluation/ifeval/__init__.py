"""Verifiable instructions in the manner of IFEval: what can be checked by a program alone."""
