"""What lies where in the folder of one `swarm-hpc local` run. Paths only; who writes a file says so at its place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from swarm_hpc.config import ClientConfig, ConnectionConfig, IdentityConfig
from swarm_hpc.errors import ConfigError, NotReachable
from swarm_hpc.records import Kind, NodeName

TRUST_DOMAIN = "swarm.local"
SUPERVISOR = "local"
POOLED = "pooled"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run; `root` is absolute."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """A new folder, or one that is there and empty; ConfigError for one that holds anything."""
        root = root.absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            is_empty = not any(root.iterdir())
        except OSError as exc:
            raise ConfigError(f"run_dir: {root}: {exc.strerror}") from exc
        if not is_empty:
            raise ConfigError(f"run_dir: {root} is not empty; name another folder or remove it")
        return cls(root)

    @classmethod
    def existing(cls, root: str | Path) -> RunFolder:
        """The folder of a run that was made before; ConfigError where it is none, or may not be looked into."""
        folder = cls(Path(root).absolute())
        try:
            is_run = folder.ledger.is_dir()
        except OSError as exc:
            raise ConfigError(f"{root} cannot be read: {exc.strerror}") from exc
        if not is_run:
            raise ConfigError(f"{root} is not the folder of a run: it has no {folder.ledger.relative_to(folder.root)}")
        return folder

    @property
    def sn_data(self) -> Path:
        """data_dir of the first site's SN, or of the only one: ledger, keys, blobs and endpoint.json."""
        return self.sn_data_of("sn")

    def sn_data_of(self, name: str) -> Path:
        """data_dir of the SN whose process has that name."""
        return self.root / name

    def check_sn(self, name: str) -> str:
        """The name, when an SN of this run has it; ConfigError lists those that there are."""
        names = sorted(path.name for path in self.root.glob("sn*") if (path / "ledger").is_dir())
        if name not in names:
            raise ConfigError(f"sn={name}: no SN of {self.root} is called so; there are {', '.join(names)}")
        return name

    @property
    def blobs(self) -> tuple[Path, ...]:
        """The folders that SNs and SLs keep blobs in, those of a site's jobs included, as far as they are there."""
        return tuple(path for place in ("sn*", "**/sl") for path in self.root.glob(f"{place}/blobs") if path.is_dir())

    @property
    def ledger(self) -> Path:
        """The first SN's ledger."""
        return self.sn_data / "ledger"

    @property
    def bundle(self) -> Path:
        """The trust bundle of all sites."""
        return self.root / "certs" / "bundle.json"

    @property
    def data(self) -> Path:
        """A folder of training data per site, and POOLED with all of it."""
        return self.root / "data"

    @property
    def settings(self) -> Path:
        """The settings each node was started with; a hydra search path, group `node`."""
        return self.root / "settings"

    @property
    def tmp(self) -> Path:
        """What containers have as their /tmp and HOME."""
        return self.root / "tmp"

    @property
    def plot(self) -> Path:
        """The figure of the results."""
        return self.root / "results.png"

    @property
    def summary(self) -> Path:
        """The results for machines."""
        return self.root / "summary.json"

    def ca(self, site: str) -> Path:
        """The site's CA."""
        return self.root / "certs" / site / "ca"

    def certs(self, site: str) -> Path:
        """Certificates and keys of the site's nodes."""
        return self.root / "certs" / site

    def log(self, name: str) -> Path:
        """Output of one process."""
        return self.root / "logs" / f"{name}.log"

    def scratch(self, site: str, run: str) -> Path:
        """Where a program may write; `run` is swarm or alone."""
        return self.root / site / run

    def state(self, site: str) -> Path:
        """State folder of the site's SL node."""
        return self.root / site / "sl"

    def identity(self, name: NodeName) -> IdentityConfig:
        """The files that say who that node is."""
        stem = self.certs(name.site) / f"{name.kind}-{name.name}"
        return IdentityConfig(cert=f"{stem}.pem", key=f"{stem}-key.pem", bundle=str(self.bundle))

    def endpoint_file(self, sn: str) -> Path:
        """Where a running SN says what it is."""
        return self.sn_data_of(sn) / "endpoint.json"

    def endpoint(self, sn: str = "sn") -> dict[str, str]:
        """What a running SN wrote down: its address and site; NotReachable when there is none."""
        file = self.endpoint_file(sn)
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotReachable(f"no SN is running in {self.root} (there is no {file})") from None
        return {key: str(value) for key, value in facts.items()}

    def client(self, connect_timeout_s: float = 5.0, sn: str = "sn") -> ClientConfig:
        """How the supervisor, and `swarm-hpc status`, ask an SN of this run."""
        facts = self.endpoint(sn)
        return ClientConfig(
            sn=facts["address"],
            identity=self.identity(NodeName(facts["site"], Kind.SWCI, SUPERVISOR)),
            connection=ConnectionConfig(connect_timeout_s=connect_timeout_s),
        )
