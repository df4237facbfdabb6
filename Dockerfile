# One image for every service and command. Its arguments say which one runs: docker run orderstream payment-worker
# The requirements are resolved for this Python, and the tests run on it. Both stages use the same image, so that the
# virtual environment of the first stage works in the second.
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY requirements/ requirements/
RUN python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --require-hashes -r requirements/uv.txt
RUN uv venv --quiet --no-project /opt/orderstream \
    && uv pip install --quiet --no-cache --compile-bytecode --only-binary :all: --python /opt/orderstream \
        --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY src/ src/
# The hash of the build backend is checked too. The backend stays in this stage.
RUN uv build --quiet --no-cache --wheel --require-hashes --build-constraints requirements/dev.txt --out-dir /build/wheel \
    && uv pip install --quiet --no-cache --compile-bytecode --no-deps --python /opt/orderstream /build/wheel/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin orderstream
COPY --from=build /opt/orderstream /opt/orderstream
# With a fixed MALLOC_MMAP_THRESHOLD_, the C library returns more memory of a large batch to the system.
ENV PATH=/opt/orderstream/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MALLOC_MMAP_THRESHOLD_=131072
WORKDIR /tmp
USER 10001
ENTRYPOINT ["orderstream"]
CMD ["--help"]
