# fitspace's environment from the project's pins; docs/container.md says how to use it, and what of it
# was tried. apptainer.def makes the same.
FROM debian:bookworm-slim
ARG PIP_EXTRA_INDEX_URL=
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates gcc git libc6-dev make python3.11 python3.11-venv \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory /fitspace
WORKDIR /fitspace
COPY Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# Beside the project, so that a clone mounted at /fitspace is what runs, in this environment. BIN: programs
# name the Python that installed them, and .venv is not in a clone.
RUN python3.11 -m venv /opt/fitspace && ln -s /opt/fitspace .venv && make BIN=/opt/fitspace/bin .venv/ready
ENV PATH=/opt/fitspace/bin:$PATH
CMD ["fitspace", "doctor"]
