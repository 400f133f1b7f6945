"""Refuses an option that is given twice where one value is meant: the first would be ignored."""

from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption


def refuse_repeated_values(command: TyperCommand | TyperGroup, ctx: Any, args: list[str]) -> None:
    """Exit with wrong usage if an option with one value is given twice. (Flags may be repeated.)"""
    _, _, given = command.make_parser(ctx).parse_args(args=list(args))
    for option in given:
        takes_one = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
        if takes_one and given.count(option) > 1:
            ctx.fail(f"give {option.opts[0]} once")


class ValuesOnce(TyperCommand):
    """A command whose options have one value each, unless they take several."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated_values(self, ctx, args)
        return super().parse_args(ctx, args)
