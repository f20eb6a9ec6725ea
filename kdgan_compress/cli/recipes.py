"""``kdgan-compress recipes``."""

from pathlib import Path

import click

from kdgan_compress.cli.options import json_option, own_code_option
from kdgan_compress.cli.output import print_report


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
    width = max(map(len, descriptions))
    lines = [f"{name:{width}}  {description}" for name, description in descriptions.items()]
    print_report(descriptions, as_json, lambda _: click.echo("\n".join(lines)))


@recipes.command()
@click.argument("name")
@own_code_option
@json_option
def show(name: str, as_json: bool) -> None:
    """Print a recipe with every value written out.

    \b
    kdgan-compress recipes show paper
    """
    from kdgan_compress.experiment.recipe import load_recipe

    recipe = load_recipe(name)
    print_report(recipe.model_dump(mode="json"), as_json, lambda _: click.echo(recipe.to_yaml(), nl=False))


@recipes.command()
@click.argument("file", type=click.Path(path_type=Path))
@own_code_option
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a recipe file and report all problems at once.

    \b
    kdgan-compress recipes check mine.yaml
    """
    from kdgan_compress.experiment.recipe import load_recipe

    load_recipe(str(file))
    print_report({"path": str(file), "ok": True}, as_json, lambda _: click.echo(f"{file} is a valid recipe"))
