"""Options of several commands, declared once: as the parameters of a function whose result the commands are given."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def with_options(**functions: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Puts the parameters of functions in the place of a command's parameters.

        @app.command()
        @with_options(facts=card_facts)
        def probe(*, out: ..., facts: ProbeFacts): ...

    has --out and every option that `card_facts` declares, where `facts` stands; the command gets what `card_facts`
    returns for them. What the command (such as its labels) or another of the functions declares too is one option.

    Args:
        functions: By parameter of the command. They are called before the command, in this order.

    Raises:
        TypeError: two of the functions declare an option that the command does not, each in its own way.
    """
    taken = {name: inspect.signature(function).parameters for name, function in functions.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(command).parameters
        own = declared.keys() - functions.keys()
        options: dict[str, inspect.Parameter] = {}
        for name, parameter in declared.items():
            if name in own:
                options[name] = parameter
            else:
                added = {o: option for o, option in taken[name].items() if o not in own}
                differing = [o for o in added if o in options and options[o] != added[o]]
                if differing:
                    raise TypeError(f"{command.__name__}: two functions declare {differing[0]} differently")
                options |= added

        @functools.wraps(command)
        def run(**values: Any) -> None:
            made = {name: function(**{o: values[o] for o in taken[name]}) for name, function in functions.items()}
            command(**made, **{name: values[name] for name in own})

        # What typer reads.
        keywords = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options.values()]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {name: option.annotation for name, option in options.items()}
        return run

    return decorate
