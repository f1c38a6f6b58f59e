"""Tests of graph views and interfaces."""
