# The quick pass in a container, as a user without privileges:
#   docker build -t selfserve . && docker run --rm selfserve
# Results on the host:  docker run --rm -v "$PWD/results:/home/selfserve/project/results" selfserve
# A host user other than 1000 adds  --user "$(id -u)".  TORCH_INDEX as in ./run_all.sh --help.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=""
RUN useradd --create-home --uid 1000 selfserve && install -d -o selfserve -g selfserve /home/selfserve/project
USER selfserve
WORKDIR /home/selfserve/project

# First what the installation depends on: an edit of the code does not install everything again.
COPY --chown=selfserve:selfserve run_all.sh pyproject.toml LICENSE requirements.txt requirements-dev.txt constraints.txt ./
COPY --chown=selfserve:selfserve src/selfserve/__init__.py src/selfserve/
RUN TORCH_INDEX="$TORCH_INDEX" ./run_all.sh setup

COPY --chown=selfserve:selfserve . .
# TORCH_INDEX is part of the set-up's stamp, so it has to stay.
ENV TORCH_INDEX="$TORCH_INDEX"
# Any user may write what a run writes.
RUN mkdir -p results && chmod -R a+rwX results .venv/var && chmod a+rx /home/selfserve

CMD ["./run_all.sh", "quick"]
