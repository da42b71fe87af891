"""Adapter methods: what is put on a backbone's sites, and what else trains."""
