"""Builds the project for `pip install --editable .`, and for nothing else: a copy would lack data/ and config/.

This is a build backend (PEP 517, PEP 660), which pyproject.toml names.
"""
from setuptools import build_meta

build_editable = build_meta.build_editable
get_requires_for_build_editable = build_meta.get_requires_for_build_editable
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise SystemExit('nanogpt-variants runs where its files are, beside data/, config/ and variants/: '
                     'install it by pip install --editable .')


build_sdist = build_wheel
