"""``kdgan-compress recipes``."""

from pathlib import Path

import click

from kdgan_compress.cli.options import json_option
from kdgan_compress.cli.output import print_json


@click.group()
def recipes() -> None:
    """List, show and check recipes: experiments as YAML files.

    \b
    kdgan-compress recipes list
    kdgan-compress recipes show default > mine.yaml
    kdgan-compress recipes check mine.yaml
    """


@recipes.command("list")
@json_option
def list_recipes(as_json: bool) -> None:
    """Names and descriptions of the shipped recipes.

    \b
    kdgan-compress recipes list
    """
    from kdgan_compress.experiment.recipe import load_recipe, recipe_names

    descriptions = {name: load_recipe(name).description for name in recipe_names()}
    if as_json:
        print_json(descriptions)
        return
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        click.echo(f"{name:{width}}  {description}")


@recipes.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Print a recipe with every value written out.

    \b
    kdgan-compress recipes show paper
    """
    from kdgan_compress.experiment.recipe import load_recipe

    recipe = load_recipe(name)
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    else:
        click.echo(recipe.to_yaml(), nl=False)


@recipes.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a recipe file and report all problems at once.

    \b
    kdgan-compress recipes check mine.yaml
    """
    from kdgan_compress.experiment.recipe import load_recipe

    load_recipe(str(file))
    if as_json:
        print_json({"path": str(file), "ok": True})
    else:
        click.echo(f"{file} is a valid recipe")
