# Builds the gateway and puts it alone into a small image. Mount a configuration at /etc/kvway/kvway.yaml.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN cargo build --release --locked --bin kvway

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates tini && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home kvway && install -d -o kvway -m 700 /run/kvway
COPY --from=build /source/target/release/kvway /usr/local/bin/kvway
COPY conf/kvway.yaml /etc/kvway/kvway.yaml
USER kvway
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=5s CMD ["kvway", "healthcheck"]
# The process that kvway runs under must not be the first one, or an upgrade would end the container.
ENTRYPOINT ["tini", "--", "kvway"]
CMD ["run", "-c", "/etc/kvway/kvway.yaml"]
