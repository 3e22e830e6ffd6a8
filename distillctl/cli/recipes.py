"""`init`, `check` and `schema`: before anything is run."""

from __future__ import annotations

from pathlib import Path

import click

from distillctl.cli.output import json_option, recipe_options, say, say_json

KINDS = ("classification", "structured", "text")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def init(kind: str, folder: Path) -> None:
    """Scaffold a recipe with a small data file and recorded answers, ready to be replaced by yours."""
    from distillctl.recipe.scaffold import scaffold

    for path in scaffold(kind, folder):
        say(f"wrote {path}")
    say(f"next: distillctl check {folder}/recipe.yaml")


@click.command()
@recipe_options
@json_option
def check(recipe: Path, backend: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a recipe and its data: every problem at once, nothing is sent, nothing is written."""
    from distillctl.check import check_recipe

    found = check_recipe(recipe, overrides, backend)
    if as_json:
        say_json(found.as_json())
        return
    say(f"{recipe}: ok")
    say(f"  {found.summary}")
    for warning in found.warnings:
        say(f"  warning: {warning}")
    say(f"next: distillctl plan {recipe}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from distillctl.recipe.schema import recipe_schema

    say_json(recipe_schema())
