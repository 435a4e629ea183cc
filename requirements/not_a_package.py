"""The build backend that pip finds in pyproject.toml: installing this project fails, in a sentence.

Its modules have names such as `api` and `engine`, which could clash with those of installed packages. So `make` puts
this folder on the path of `.venv`, and an image copies it. As there is no package, there is no py.typed.
"""

from typing import NoReturn


def refuse(*_: object, **__: object) -> NoReturn:
    """Stand in for every hook that builds something (PEP 517 and 660)."""
    raise SystemExit(
        "embeddinggemma-cog is a container, not a package, so it cannot be installed: clone it and run make test, "
        "which sets up .venv; or run pip install -r requirements/local.txt, and add the clone's folder to PYTHONPATH"
    )


build_wheel = build_sdist = build_editable = refuse
