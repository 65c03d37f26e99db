"""The config file of a run on Kaggle: the one of every run, with the names that it gets and a table of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from orchestrator.backends.kaggle.account import find_user
from orchestrator.config import named_template
from orchestrator.ports import ConfigWishes
from state.errors import UserError
from state.kaggle.names import attempt_dataset_slug, attempt_kernel_slug, check_run_fits, control_slug, slugify
from state.layout import check_run_name

_DEFAULT_NAME = "my-gemma"
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,48}[A-Za-z0-9])?")

_KAGGLE = """
[kaggle]
{owner}
accelerator = "t4x2"       # two T4; or "cpu", whose sessions cost no quota
# internet = true          # without it a session can upload nothing: its checkpoint is taken from its output
# upload_every = "1h"      # what is lost at most when Kaggle kills a session
# poll_every = "60s"       # time between two calls to Kaggle about a session
# stop_poll_every = "3m"   # time between a session's looks for gemma-orch stop
# settle = "10m"           # how long Kaggle's answers may lag behind what was written
# processing_limit = "1h"  # longest wait for an uploaded dataset version
# gpu_reserve = "2h"       # weekly GPU time that is left to your own notebooks; none when it is not said
# storage_quota = "200GiB" # the account's private storage
# storage_share = 0.6      # of it, for the checkpoints of this run
# token_dataset = "{account}/my-token"    # a private dataset with a scoped token: read docs/kaggle.md about its risk first
"""


def config_for_kaggle(environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
    """Return a config file for a run on Kaggle; on a terminal, ask for what was not said.

    Raises:
        UserError: a name on the account would not be possible.
    """
    name, owner, ask = wishes.name, wishes.owner, wishes.ask
    found, where = find_user(environment)
    if found is not None and owner not in (None, found):
        say(f"the credentials of {where} are those of {found}, not of {owner}: gemma-orch will look for {owner}'s")
    if owner is None and ask is not None:
        owner = ask("Kaggle user name", found, check_owner)
    elif owner is None and found is None:
        say(f"{where}\nuntil then the owner stays open in the config file: it will be the account of the credentials")
    if name is None:
        name = ask("name of the run", _DEFAULT_NAME, check_run_name, check_run_fits) if ask is not None else _DEFAULT_NAME
    owner = owner or found
    check_names(name, owner)
    say("on the account it will have " + ", ".join(f"{owner or 'OWNER'}/{slug}" for slug in slugs_of(name)) + " and so on")
    return kaggle_template(name, owner)


def kaggle_template(name: str, owner: str | None) -> str:
    """Return a commented config file for a run on Kaggle.

    Args:
        name: The run's name.
        owner: The account's user name; None: that of the credentials, whoever they are of.

    Raises:
        UserError: a name on the account would not be possible.
    """
    check_names(name, owner)
    said = (
        f'owner = "{owner}"'
        if owner is not None
        else '# owner = "your-user-name"    # that of the credentials when it is not said'
    )
    text = named_template(name).replace('# backend = "local"', 'backend = "kaggle"')
    return text + _KAGGLE.format(owner=said, account=owner or "your-user-name")


def check_names(name: str, owner: str | None) -> None:
    """Check that Kaggle can have everything that a run of this name needs, each under its own slug.

    Raises:
        UserError: it cannot.
    """
    check_run_name(name)
    check_run_fits(name)
    for slug in slugs_of(name):
        assert slugify(slug) == slug, slug
    if owner is not None:
        check_owner(owner)


def check_owner(owner: str) -> None:
    """Check that an account can have this user name.

    Raises:
        UserError: it cannot.
    """
    if not _OWNER.fullmatch(owner):
        raise UserError(
            f"{owner!r} is no user name of Kaggle",
            expected="letters, digits and hyphens, as in https://www.kaggle.com/NAME",
            remedy="look at the address of your profile",
        )


def slugs_of(name: str) -> tuple[str, ...]:
    """Return what a run will have on the account: its first kernel, that one's dataset, and its control dataset."""
    return (attempt_kernel_slug(name, 1, 1), attempt_dataset_slug(name, 1, 1), control_slug(name))
