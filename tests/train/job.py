"""launch.train with the tiny model in its zoo: python job.py --config tiny.py --workdir DIR ..."""

import tiny

from launch import cli, train

if __name__ == "__main__":
    tiny.add()
    cli.run(train.main)
