use std::io;
use std::sync::Arc;

use attestation::{AppraisalError, AttestedIdentity, NotAffirmed, Purpose, ReportBinding, UnixTime};
use audit_log::AuditLog;
use cluster_types::{DiskUuid, NodeRole};
use digest::Digest;
use error_report::Chain;
use grpc_api::kms::api_server::Api;
use grpc_api::kms::{
    AdmitNodeRequest, AdmitNodeResponse, DrawNonceRequest, DrawNonceResponse, ReadmitNodeRequest, ReadmitNodeResponse,
};
use jiff::Timestamp;
use key_derivation::{DiskOwner, Label, MasterSecret};
use node_secrets::{ControlPlaneSecrets, KeyServiceKey, NodeSecrets, SealError, seal};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use role_grant::{RequestedRole, RoleGrant, RoleGrantError};
use tokio::sync::Semaphore;
use tonic::{Response, Status};
use tracing::{info, warn};
use uuid::Uuid;

use crate::audit::{Decision, Record};
use crate::nonces::{NonceError, Nonces};
use crate::policy::{InForce, PolicyGate, PolicyRefused};
use crate::request::{InvalidRequest, Request, Wanted, parse_purpose};
use crate::shared_files::{ReadSharedFileError, SharedFiles};

/// How many decisions are made at once.
const AT_WORK: usize = 16;

/// The implementation of `constellation.kms.v1.API`.
pub(crate) struct KeyService {
    releases: Arc<Releases>,
    /// A request that is given up goes on until the disk is done.
    at_work: Arc<Semaphore>,
}

/// Decides on releases, and records them. Its methods block.
struct Releases {
    master_secret: MasterSecret,
    signer: KeyServiceKey,
    gate: PolicyGate,
    shared_files: SharedFiles,
    nonces: Nonces,
    audit: AuditLog,
    refused: AuditLog,
    granted: Counter,
    denied: Counter,
}

/// What a node gets once it is recorded.
struct Release {
    keys: Vec<String>,
    sealed: Vec<u8>,
}

/// A node whose Evidence was affirmed.
#[derive(Clone, Copy)]
struct AffirmedNode {
    machine: AttestedIdentity,
    policy_serial: u64,
}

/// A node gets nothing.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Nonce(#[from] NonceError),
    #[error("the cluster policy is refused")]
    Policy(#[from] PolicyRefused),
    #[error(transparent)]
    Appraisal(#[from] AppraisalError),
    #[error(transparent)]
    NotAffirmed(#[from] NotAffirmed),
    #[error("role_grant is refused")]
    Grant(#[from] RoleGrantError),
    #[error(transparent)]
    Files(#[from] ReadSharedFileError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the decision cannot be recorded, so nothing is released")]
    Audit(#[source] io::Error),
}

impl Refusal {
    /// A node learns what is wrong with its own grant, and the caller what is wrong with what it brought.
    fn status(&self) -> Status {
        let reason = Chain(self).to_string();
        match self {
            Self::Grant(_) => Status::permission_denied(reason),
            Self::Policy(_) => Status::failed_precondition(reason),
            Self::Nonce(NonceError::Used) => Status::aborted(reason),
            Self::Nonce(_) | Self::Appraisal(_) | Self::NotAffirmed(_) | Self::Seal(_) => {
                Status::unauthenticated(reason)
            }
            Self::Files(_) | Self::Audit(_) => Status::unavailable(reason),
        }
    }
}

impl KeyService {
    pub(crate) fn new(
        master_secret: MasterSecret,
        gate: PolicyGate,
        shared_files: SharedFiles,
        audit: AuditLog,
        refused: AuditLog,
        metrics: &mut Registry,
    ) -> Self {
        let (granted, denied) = (Counter::default(), Counter::default());
        metrics.register("key_service_granted", "Requests granted", granted.clone());
        metrics.register("key_service_denied", "Requests denied", denied.clone());
        let releases = Releases {
            signer: KeyServiceKey::of(&master_secret),
            master_secret,
            gate,
            shared_files,
            nonces: Nonces::new(),
            audit,
            refused,
            granted,
            denied,
        };
        Self {
            releases: Arc::new(releases),
            at_work: Arc::new(Semaphore::new(AT_WORK)),
        }
    }

    /// The disk takes a while, and the signature of a quote a fifth of a millisecond.
    async fn release(&self, request: Result<Request, InvalidRequest>) -> Result<Vec<u8>, Status> {
        let releases = self.releases.clone();
        let request = request.map_err(|invalid| {
            releases.denied.inc();
            warn!(error = %Chain(&invalid), "invalid request");
            Status::invalid_argument(Chain(&invalid).to_string())
        })?;
        let permit = self.at_work.clone().acquire_owned().await;
        let released = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            releases.release(&request)
        })
        .await;
        released.map_err(|_| Status::internal("the request was cut off"))?
    }
}

impl Releases {
    /// Decides, and returns what the node gets when that is on record.
    fn release(&self, request: &Request) -> Result<Vec<u8>, Status> {
        let purpose = request.session.parts.purpose;
        match self.decide(request) {
            Ok(sealed) => {
                self.granted.inc();
                Ok(sealed)
            }
            Err(refusal) => {
                self.denied.inc();
                warn!(%purpose, reason = %Chain(&refusal), "no keys released");
                Err(refusal.status())
            }
        }
    }

    /// 1. The nonce was drawn here, for this purpose and not long ago.
    /// 2. The policy is the operator's, for this cluster, and not an earlier one.
    /// 3. By it, the Evidence is affirmed, and bound to the nonce and to the key to which the secrets will be sealed.
    /// 4. The nonce was not used before. What was refused so far is not recorded: anyone who reaches the socket could fill the log with it.
    /// 5. A control plane has the operator's grant for this machine.
    /// 6. The decision is on record.
    fn decide(&self, request: &Request) -> Result<Vec<u8>, Refusal> {
        let parts = &request.session.parts;
        self.nonces.check(self.nonces.now(), &parts.nonce, parts.purpose)?;
        let in_force = self.gate.put_in_force(&request.policy, &request.measurement_salt)?;
        let binding = request.session.binding();
        let result = in_force
            .verifiers
            .appraise(&request.session.evidence, &binding, time_of_day())?;
        let node = AffirmedNode {
            machine: result.into_affirmed()?.identity(),
            policy_serial: in_force.policy.serial,
        };
        self.nonces.spend(&parts.nonce)?;
        let release = self.release_to(node.machine, request, &binding, &in_force);
        self.record(node, parts.purpose, &release)?;
        Ok(release?.sealed)
    }

    /// Everything that comes after the Evidence.
    fn release_to(
        &self,
        machine: AttestedIdentity,
        request: &Request,
        binding: &ReportBinding,
        in_force: &InForce,
    ) -> Result<Release, Refusal> {
        if let Wanted::ControlPlane(grant) = &request.wanted {
            let policy = &in_force.policy;
            let requested = RequestedRole {
                cluster: policy.cluster,
                machine,
                role: NodeRole::ControlPlane,
            };
            RoleGrant::check(
                grant,
                policy.operator(),
                &requested,
                policy.min_grant_serial,
                time_of_day(),
            )?;
        }
        let secrets = self.secrets(&request.wanted, machine, in_force)?;
        let sealed = seal(&secrets, &request.sealing_key, binding, &self.signer)?;
        Ok(Release {
            keys: key_ids(&secrets, owner_of_disk(&request.wanted, machine, in_force)),
            sealed,
        })
    }

    /// A key of a disk is always one of this machine's: whoever names another machine's disk gets a key that opens nothing.
    fn secrets(
        &self,
        wanted: &Wanted,
        machine: AttestedIdentity,
        in_force: &InForce,
    ) -> Result<NodeSecrets, ReadSharedFileError> {
        let kek = self.master_secret.kek();
        let disk = match wanted {
            Wanted::Worker | Wanted::ControlPlane(_) => DiskUuid::from(Uuid::new_v4()),
            Wanted::Disk(disk, _) => *disk,
        };
        let control_plane = match wanted {
            Wanted::ControlPlane(_) => Some(ControlPlaneSecrets {
                master_secret: self.master_secret.duplicate(),
                files: self.shared_files.read()?,
            }),
            Wanted::Worker | Wanted::Disk(..) => None,
        };
        Ok(NodeSecrets {
            disk,
            state_disk_key: kek.state_disk_key(disk, &owner_of_disk(wanted, machine, in_force)),
            measurement_secret: kek.measurement_secret(),
            policy: Digest::of(in_force.policy.as_bytes()),
            cluster_ca: self.shared_files.cluster_ca()?,
            control_plane,
        })
    }

    fn record(&self, node: AffirmedNode, purpose: Purpose, release: &Result<Release, Refusal>) -> Result<(), Refusal> {
        let record = Record {
            time: Timestamp::now(),
            purpose: purpose.as_str(),
            machine: node.machine.to_string(),
            policy_serial: node.policy_serial,
            keys: release.as_ref().map(|release| release.keys.clone()).unwrap_or_default(),
            decision: if release.is_ok() {
                Decision::Granted
            } else {
                Decision::Denied
            },
            reason: release.as_ref().err().map(|refusal| Chain(refusal).to_string()),
        };
        if release.is_err() {
            return self.refused.write(&record).map_err(Refusal::Audit);
        }
        self.audit.write(&record).map_err(Refusal::Audit)?;
        info!(%purpose, machine = record.machine, keys = ?record.keys, "keys released");
        Ok(())
    }
}

fn owner_of_disk(wanted: &Wanted, machine: AttestedIdentity, in_force: &InForce) -> DiskOwner {
    DiskOwner {
        cluster: in_force.policy.cluster,
        machine: *machine.as_bytes(),
        role: wanted.role(),
    }
}

fn key_ids(secrets: &NodeSecrets, owner: DiskOwner) -> Vec<String> {
    let disk = Label::StateDisk {
        disk: secrets.disk,
        owner,
    };
    let of_control_plane = secrets.control_plane.as_ref().map(|_| ["masterSecret", "sharedFiles"]);
    let labels = [disk, Label::MeasurementSecret].map(|label| label.to_string());
    let of_control_plane = of_control_plane.into_iter().flatten().map(str::to_owned);
    labels.into_iter().chain(of_control_plane).collect()
}

/// The host sets it. It can keep a grant alive for too long, but the grant is still for one machine alone.
fn time_of_day() -> UnixTime {
    UnixTime::from_seconds(u64::try_from(Timestamp::now().as_second()).unwrap_or(u64::MAX))
}

#[tonic::async_trait]
impl Api for KeyService {
    async fn draw_nonce(
        &self,
        request: tonic::Request<DrawNonceRequest>,
    ) -> Result<Response<DrawNonceResponse>, Status> {
        let purpose = parse_purpose(request.into_inner());
        let purpose = purpose.map_err(|invalid| Status::invalid_argument(Chain(&invalid).to_string()))?;
        let nonces = &self.releases.nonces;
        Ok(Response::new(DrawNonceResponse {
            nonce: nonces.draw(nonces.now(), purpose).as_bytes().to_vec(),
        }))
    }

    async fn admit_node(
        &self,
        request: tonic::Request<AdmitNodeRequest>,
    ) -> Result<Response<AdmitNodeResponse>, Status> {
        let sealed_secrets = self.release(Request::parse_admit(request.into_inner())).await?;
        Ok(Response::new(AdmitNodeResponse { sealed_secrets }))
    }

    async fn readmit_node(
        &self,
        request: tonic::Request<ReadmitNodeRequest>,
    ) -> Result<Response<ReadmitNodeResponse>, Status> {
        let sealed_secrets = self.release(Request::parse_readmit(request.into_inner())).await?;
        Ok(Response::new(ReadmitNodeResponse { sealed_secrets }))
    }
}
