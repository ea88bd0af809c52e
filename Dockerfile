# syntax=docker/dockerfile:1
# The image of Mobula: one static binary, CA certificates, no shell, no root. `make image` makes the same without Docker.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --provenance=true \
#     --build-arg VERSION=v1.2.3 --build-arg REVISION=$(git rev-parse HEAD) --tag NAME:TAG --push .
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION
# NVML needs cgo: `mobula agent` finds no GPUs in this image. On Kubernetes the device plugin does.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath \
    -ldflags "-s -w ${VERSION:+-X github.com/mobula-serve/mobula/cmd/app.version=$VERSION}" -o /image/mobula ./cmd/mobula
RUN install -d -m 1777 /image/tmp && install -d /image/etc \
    && printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n' >/image/etc/passwd \
    && printf 'root:x:0:\nnonroot:x:65532:\n' >/image/etc/group \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt

FROM scratch
ARG VERSION REVISION
LABEL org.opencontainers.image.title="Mobula" \
      org.opencontainers.image.source="https://github.com/mobula-serve/mobula" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
ENV PATH=/ SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
COPY --from=build /image/ /
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/mobula"]
