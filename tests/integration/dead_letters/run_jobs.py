"""Works on jobs like a console, in a process that a test can kill. The argument is the prefix of the topics."""

import sys

from orderstream.dead_letters.runner import JobRunner
from orderstream.settings import load

if __name__ == "__main__":
    settings = load().model_copy(update={"kafka_topic_prefix": sys.argv[1]})
    JobRunner(settings, settings.postgres_url).run()
