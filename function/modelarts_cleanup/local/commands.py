"""The one page that `modelarts-cleanup --help` shows, and the commands behind it."""

import click

from modelarts_cleanup.local.check import check
from modelarts_cleanup.local.demo import demo
from modelarts_cleanup.local.explain import explain
from modelarts_cleanup.local.replay import replay
from modelarts_cleanup.local.send import send
from modelarts_cleanup.local.serve import serve


class _InThisOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the commands in the order in which one meets them."""
        return list(self.commands)


@click.group(cls=_InThisOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="modelarts-cleanup", prog_name="modelarts-cleanup")
def commands() -> None:
    """
    Delete ModelArts hyper clusters when their time is up, and tell what happened.

    That is what the deployed function does; these commands try it, explain it and look after it. None of them
    deletes a cluster by itself: whatever is deleted is deleted by a function that was sent an event.

    \b
    To see it work, without an account of anything:
      modelarts-cleanup demo
      modelarts-cleanup serve
      modelarts-cleanup send events/samples/expiry/deleted.json
    \b
    Before and after a deployment, with its settings in the environment:
      modelarts-cleanup explain event.json
      modelarts-cleanup check
    \b
    When deliveries could not save an event:
      modelarts-cleanup replay projects/P/subscriptions/S --to pubsub://projects/P/topics/T

    Every command takes --json. Colours are for terminals, and NO_COLOR switches them off. Every command ends
    with 0 if all is well, with 1 if something is not, and with 2 if it could not do what it was asked.
    """  # noqa: D301 - the backslashes are click's own, and mean "keep these lines"


for _command in (demo, serve, send, explain, check, replay):
    commands.add_command(_command)
