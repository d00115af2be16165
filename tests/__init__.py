"""Tests of pyro_vae; a package, so that test modules can share `tests.helpers`."""
