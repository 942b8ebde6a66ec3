"""`nox -s build`: from a commit to an image, through the Docker engine's API; `python -m tier3.image` is the program.

`options` reads the environment, `revision` asks git, `naming` has the rules of names, `context` packs what a build is
given, `engine` builds and pushes, `progress` and `buildkit` tell how it goes. `stages.sh` is what runs inside a build.
`base` makes a base image from Debian's packages, where no registry can be reached. Nothing of this ships.
"""
