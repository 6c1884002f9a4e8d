//! What the host, a machine of its own, or a pod tries against the services of a running cluster.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use attestation::{Attester, Nonce, Purpose, SessionEvidence};
use attested_tls::{HandshakeError, channel};
use cluster_policy::{BelievedPolicy, ClusterPolicy};
use cluster_types::{NodeRole, OperatorPublicKey};
use e2e::{Answer, Cluster, Image, Machine, NETWORK, RUN_FOLDER, private_network_port};
use grpc_api::join::IssueJoinTicketRequest;
use key_derivation::DiskOwner;
use key_service_client::{KeyServiceClient, KeyServiceError, PresentedPolicy, WantedRole};
use node_secrets::{KeyServiceKey, SealingKey};
use operator_key::OperatorKey;
use tempfile::TempDir;
use test_machines::SOFTWARE_TPM;
use test_services::{join_request, presented};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};
use tokio::runtime::Runtime;
use tonic::{Code, Status};

use crate::rogue::Ours;
use crate::workload::{CONTROL_PLANE, WORKER};
use crate::{relay, rogue, workload};

/// An address that no node has.
pub(crate) const ROGUE_ADDRESS: [u8; 4] = [10, 42, 9, 9];
pub(crate) const ROGUE_NAME: &str = "worker-7";
/// Another one: an address belongs to the machine that claims it first.
const THIEFS_ADDRESS: [u8; 4] = [10, 42, 9, 8];
/// The node whose metadata lies.
const LIAR: &str = "control-plane-7";

pub(crate) fn replayed_evidence_is_refused(cluster: &Cluster, image: &Image) -> Result<()> {
    let service = join_service(cluster)?;
    let recorder = rogue::Recorder::of(rogue::forged(&Ours::new(cluster, image)?));
    in_the_log(
        cluster,
        "join-service",
        &["handshake failed", "bound to something else"],
        async {
            // A session that the service opens, so that the Evidence is good.
            channel(&rogue::careless(recorder.clone()), Purpose::Join, &service).await?;
            let replay = rogue::Replay(recorder.said()?);
            rogue::must_be_refused(&rogue::careless(std::sync::Arc::new(replay)), &service).await
        },
    )
}

/// Both ends notice: a node that attested in a relayed session is refused by the service, and an honest node does not even
/// get that far.
pub(crate) fn a_relayed_session_is_refused(cluster: &Cluster, image: &Image) -> Result<()> {
    let service = join_service(cluster)?;
    let ours = Ours::new(cluster, image)?;
    let node = rogue::forged(&ours);
    in_the_log(
        cluster,
        "join-service",
        &["handshake failed", "bound to something else"],
        async {
            let relayed = relay::start(service.clone()).await?;
            rogue::must_be_refused(&rogue::careless(node.clone()), &relayed).await
        },
    )?;
    blocking(async {
        let relayed = relay::start(service).await?;
        let Err(HandshakeError::Appraisal(error)) = channel(&rogue::honest(node, &ours), Purpose::Join, &relayed).await
        else {
            bail!("the node did not refuse the relayed join service")
        };
        ensure!(SOFTWARE_TPM.is_bound_to_something_else(&error), "{error:?}");
        Ok(())
    })
}

pub(crate) fn reflected_evidence_is_refused(cluster: &Cluster, image: &Image) -> Result<()> {
    let (service, ours) = (join_service(cluster)?, Ours::new(cluster, image)?);
    in_the_log(
        cluster,
        "join-service",
        &["handshake failed", "bound to something else"],
        async { rogue::must_be_refused(&rogue::reflecting(&ours), &service).await },
    )
}

/// What another image would measure differs in these registers, and the log names them.
pub(crate) fn a_node_with_another_image_is_refused(cluster: &Cluster, image: &Image) -> Result<()> {
    let other = image.with_command_line("sysctl.kernel.sysrq=0", "sysctl.kernel.sysrq=1")?;
    let service = join_service(cluster)?;
    let named = [
        "handshake failed",
        "contraindicated",
        "PCR 4 is",
        "PCR 9 is",
        "PCR 11 is",
    ];
    let other = Ours {
        image: other.values(),
        ..Ours::new(cluster, image)?
    };
    in_the_log(cluster, "join-service", &named, async {
        rogue::must_be_refused(&rogue::careless(rogue::forged(&other)), &service).await
    })
}

/// Our image in somebody else's cluster: everything is as it should be, but the node obeys another operator.
pub(crate) fn a_node_of_another_operator_is_refused(cluster: &Cluster, image: &Image) -> Result<()> {
    let service = join_service(cluster)?;
    let other = Ours {
        operator: OperatorPublicKey::new([1; 32]),
        ..Ours::new(cluster, image)?
    };
    let named = ["handshake failed", "contraindicated: PCR 14 is"];
    in_the_log(cluster, "join-service", &named, async {
        rogue::must_be_refused(&rogue::careless(rogue::forged(&other)), &service).await
    })
}

pub(crate) fn a_worker_gets_no_control_plane_role_without_a_grant(cluster: &Cluster, image: &Image) -> Result<()> {
    let service = join_service(cluster)?;
    let node = rogue::careless(rogue::forged(&Ours::new(cluster, image)?));
    in_the_log(
        cluster,
        "join-service",
        &["ticket refused", "role_grant is refused"],
        async {
            let request = IssueJoinTicketRequest {
                is_control_plane: true,
                // A name that nobody else wants later: it belongs to this machine now.
                ..join_request("worker-6", [10, 42, 9, 6])
            };
            let refusal = "role_grant is refused: a control-plane needs a role grant signed by the operator";
            must_be_denied(rogue::join(&node, &service, request).await?, refusal)
        },
    )
}

/// Neither as a new node under the name of the worker or the first node, nor as a node that comes back with the disk of one of them:
/// another machine's request for a disk yields a key that does not open it.
pub(crate) fn a_node_gets_no_disk_key_of_another(cluster: &Cluster, image: &Image) -> Result<()> {
    let service = join_service(cluster)?;
    let owners = [(CONTROL_PLANE, NodeRole::ControlPlane), (WORKER, NodeRole::Worker)];
    let machine = rogue::forged(&Ours::new(cluster, image)?);
    let node = rogue::careless(machine.clone());
    let key_service = KeyServiceKey::of(&cluster.master_secret()?).public();
    let (not_a_member, not_its_name) = (
        "this machine is not a node of this cluster",
        "node_name or node_address is not this machine's",
    );
    in_the_log(
        cluster,
        "join-service",
        &["ticket refused", "belongs to machine"],
        async {
            for (owner, _) in owners {
                let request = join_request(owner, THIEFS_ADDRESS);
                must_be_denied(rogue::join(&node, &service, request).await?, not_its_name)?;
            }
            Ok(())
        },
    )?;
    in_the_log(
        cluster,
        "join-service",
        &["ticket refused", "not a node of this cluster"],
        async {
            let disk = (cluster.state_disk(WORKER)?, NodeRole::Worker);
            let refused = rogue::rejoin(machine.clone(), &service, disk, &key_service).await?;
            must_be_denied(refused, not_a_member)
        },
    )?;
    let (kek, state) = (cluster.master_secret()?.kek(), cluster.state()?);
    in_the_log(cluster, "key-service", &["keys released", "rejoin"], async {
        // A machine with a name of its own.
        let joined = rogue::join(&node, &service, join_request("worker-8", THIEFS_ADDRESS)).await?;
        ensure!(joined.is_ok(), "{joined:?}");
        for (owner, role) in owners {
            let (disk, owner) = (cluster.state_disk(owner)?, owner.parse()?);
            let owner = state.identities.get(&owner).context("no identity")?;
            let stolen = rogue::rejoin(machine.clone(), &service, (disk, role), &key_service).await??;
            let owner = DiskOwner {
                cluster: state.cluster_id.context("no cluster id")?,
                machine: *owner.as_bytes(),
                role,
            };
            let real = kek.state_disk_key(disk, &owner);
            ensure!(
                stolen.state_disk_key.expose() != real.expose(),
                "the key opens the disk"
            );
        }
        Ok(())
    })
}

/// Whoever reaches the socket of the key service, with every right in Kubernetes: Evidence decides, and it covers who can read the
/// answer.
pub(crate) fn the_key_services_socket_gives_nothing_away(cluster: &Cluster, image: &Image) -> Result<()> {
    let socket = "/run/state/constellation/key-service";
    cluster.create(&workload::socket_thief("socket-thief", socket))?;
    workload::wait_until_ready(cluster, "socket-thief")?;
    let forwarded = cluster.forward(workload::PRIVILEGED, "pod/socket-thief", workload::THIEFS_PORT)?;
    let folder = TempDir::new()?;
    let (ours, policy, salt) = (
        Ours::new(cluster, image)?,
        rogue::operators_policy(cluster)?,
        cluster.state()?.measurement_salt,
    );
    let other_image = image.with_command_line("sysctl.kernel.sysrq=0", "sysctl.kernel.sysrq=1")?;
    let changed = Ours {
        image: other_image.values(),
        ..Ours::new(cluster, image)?
    };
    let foreign = BelievedPolicy::sign(
        &ClusterPolicy {
            serial: policy.serial + 1,
            ..(*policy).clone()
        },
        &OperatorKey::from_seed(&[9; 32]),
    )?;
    let (node, changed) = (rogue::forged(&ours), rogue::forged(&changed));
    let present = |machine: &dyn Attester, nonce| presented(machine, nonce, Purpose::Join, &SealingKey::generate());
    // What an honest node presented, with the thief's key in place of the node's.
    let steal = |nonce| {
        let mut stolen = present(&*node, nonce)?;
        stolen.parts.sealing_key = Some(SealingKey::generate().public());
        Ok(stolen)
    };
    type Present<'a> = &'a dyn Fn(Nonce) -> Result<SessionEvidence>;
    let attacks: [(&str, &BelievedPolicy, Present<'_>); 4] = [
        ("the nonce is not one that was drawn here", &policy, &|_| {
            present(&*node, Nonce::generate())
        }),
        ("contraindicated", &policy, &|nonce| present(&*changed, nonce)),
        ("is signed by operator", &foreign, &|nonce| present(&*node, nonce)),
        ("evidence is not authentic", &policy, &steal),
    ];
    for (number, (reason, policy, present)) in attacks.into_iter().enumerate() {
        let socket = folder.path().join(number.to_string());
        let policy = PresentedPolicy {
            policy,
            measurement_salt: &salt,
        };
        in_the_log(cluster, "key-service", &["no keys released", reason], async {
            forward(&socket, forwarded.address())?;
            let client = KeyServiceClient::new(&socket);
            let presented = present(client.nonce(Purpose::Join).await?)?;
            match client.admit(&presented, policy, WantedRole::Worker).await {
                Err(KeyServiceError::Refused(status)) if status.message().contains(reason) => Ok(()),
                Err(error) => Err(error).with_context(|| format!("refused, but not for {reason:?}")),
                Ok(_) => bail!("the key service released something: {reason}"),
            }
        })?;
    }
    Ok(())
}

/// Forwards connections to a Unix socket to an address.
pub(crate) fn forward(socket: &Path, address: &str) -> Result<()> {
    let (listener, address) = (UnixListener::bind(socket)?, address.to_owned());
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            let address = address.clone();
            tokio::spawn(async move {
                let mut service = TcpStream::connect(&address).await?;
                copy_bidirectional(&mut caller, &mut service).await
            });
        }
    });
    Ok(())
}

/// A real node on the cluster's private network whose metadata lies in every way, and in the end says that it is a control plane.
/// The node goes on asking, says why, and is never let in.
pub(crate) fn metadata_that_lies_lets_nobody_in(cluster: &Cluster, image: &Image) -> Result<()> {
    let private_network = private_network_port(&cluster.workspace().join(RUN_FOLDER))?;
    let operator = Ours::new(cluster, image)?.operator;
    Machine::new("lying metadata", image.disk())
        .with_metadata(move |request, before| lie(request, before, operator))
        .on_private_network(private_network)
        .run(|vm| {
            for reason in [
                "not in the documented form",
                "is longer than 65536 bytes",
                "192.0.2.1 cannot be a node's address",
                "within 30s",
                "10.0.0.0/8 overlaps 10.244.0.0/16",
                // The console shows JSON, so the name before it has escaped quotes.
                " is not a network card of a node",
                "127.0.0.1 cannot be a name server",
                "10.42.1.150 is not the address of a machine in 10.43.0.0/16",
                "operatorkey is not an Ed25519 public key",
                "the join service refused: role_grant is refused",
            ] {
                vm.wait_until(reason, |vm| Ok(vm.console()?.contains(reason)))?;
            }
            let node = cluster.kubectl(["get", "node", LIAR, "--ignore-not-found", "--output", "name"])?;
            ensure!(node.is_empty(), "the node was let in");
            Ok(())
        })
}

fn lie(request: &str, before: usize, operator: OperatorPublicKey) -> Answer {
    let instance = |role: &str, address: &str| {
        format!(r#"{{"Name":"{LIAR}","ProviderID":"qemu:///{LIAR}","Role":"{role}","VPCIP":"{address}"}}"#)
    };
    Answer::Text(match (request, before) {
        ("self", 0) => String::new(),
        ("self", 1) => "x".repeat(10 << 20),
        ("self", 2) => instance("Worker", "192.0.2.1"),
        ("self", 3) => return Answer::Silence,
        // The role that gets the cluster's keys.
        ("self", _) => instance("ControlPlane", "10.42.1.150"),
        // Pods' packets would get onto the host's wires, or the node would ask itself for names.
        ("network", 0) => NETWORK.replace("10.42.0.0/16", "10.0.0.0/8"),
        ("network", 1) => NETWORK.replace("private0", "lo"),
        ("network", 2) => NETWORK.replace("10.0.2.3", "127.0.0.1"),
        ("network", 3) => NETWORK.replace("10.42", "10.43"),
        ("network", _) => NETWORK.to_owned(),
        ("peers", _) => format!("[{}]", instance("ControlPlane", "10.42.1.100")),
        // Nothing listens there.
        ("endpoint", _) => r#"{"host":"10.42.1.151","port":6443}"#.to_owned(),
        ("initsecrethash", _) => "5a".repeat(32),
        // The network that the first one comes with is refused.
        ("operatorkey", 1) => "0b".repeat(31),
        // Under another one, the node would refuse the join service.
        ("operatorkey", _) => operator.to_string(),
        _ => return Answer::NotFound,
    })
}

pub(crate) fn join_service(cluster: &Cluster) -> Result<String> {
    let control_plane = cluster.machine("control-plane-0")?;
    Ok(format!("{}:{}", control_plane.host, control_plane.ports.join))
}

fn must_be_denied<T>(answer: Result<T, Status>, reason: &str) -> Result<()> {
    let refusal = answer.err().context("a ticket was issued")?;
    let as_expected = refusal.code() == Code::PermissionDenied && refusal.message() == reason;
    ensure!(as_expected, "expected {reason:?}, got {refusal}");
    Ok(())
}

/// Runs an attack, and waits until a service has written a line with all of this.
pub(crate) fn in_the_log(
    cluster: &Cluster,
    service: &str,
    expected: &[&str],
    attack: impl Future<Output = Result<()>>,
) -> Result<()> {
    let target = format!("daemonset/{service}");
    let log = || cluster.kubectl(["logs", "--namespace", "kube-system", &target]);
    let before = log()?.len();
    blocking(attack)?;
    cluster.wait_until("the reason in the log", || {
        let log = log()?;
        let new = log.get(before..).unwrap_or_default();
        Ok(new.lines().any(|line| expected.iter().all(|part| line.contains(part))))
    })
}

pub(crate) fn blocking<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    Runtime::new()?.block_on(future)
}
