//! The machines a cluster should have, and whether they run.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use cluster_config::{ClusterConfig, ClusterState};
use cluster_types::{NodeRole, OperatorPublicKey};
use infrastructure::{ClusterSpec, Infrastructure, Machine, MachineStatus, Provider};
use polling::Failed;
use reqwest::redirect::Policy;

use crate::advice::advise;
use crate::output::shown;

/// A node that says nothing for as long as this does not answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The machines that a configuration describes.
pub(crate) fn spec(config: &ClusterConfig, state: &ClusterState, operator: Option<OperatorPublicKey>) -> ClusterSpec {
    ClusterSpec {
        name: config.name.clone(),
        image: config.image.clone(),
        init_secret_hash: state.init_secret.hash(),
        operator,
        mirror: config.mirror.clone(),
        nodes: config.nodes(),
        members: state.members.clone(),
    }
}

/// The machine of the first control plane.
pub(crate) fn first_node(infrastructure: &Infrastructure) -> Result<Machine> {
    let mut nodes = infrastructure.nodes.iter();
    let first = nodes.find(|node| node.role == NodeRole::ControlPlane);
    first.cloned().context("the cluster has no control plane")
}

/// Fails if a machine has stopped, with the reason on its console, or is paused.
pub(crate) fn check_running(provider: &dyn Provider) -> Result<()> {
    check_running_of(provider, |_| true)
}

/// The same, for some of the machines.
pub(crate) fn check_running_of(provider: &dyn Provider, is_meant: impl Fn(&Machine) -> bool) -> Result<()> {
    for machine in provider.machines()?.into_iter().filter(is_meant) {
        match machine.status {
            MachineStatus::Stopped { reason, console } => {
                let error = anyhow!("{} stopped: {}", machine.name, shown(&reason));
                return Err(advise(error, console, provider.advice_on_stopped()));
            }
            MachineStatus::Paused { reason } => bail!("{} is paused: {}", machine.name, shown(&reason)),
            MachineStatus::Unknown | MachineStatus::NotMade | MachineStatus::Running => {}
        }
    }
    Ok(())
}

/// Failures are retried while all machines run. A machine that has stopped is a better explanation, and final.
pub(crate) fn retry(provider: &dyn Provider, error: impl Into<Error>) -> Failed<Error> {
    match check_running(provider) {
        Ok(()) => Failed::Retry(error.into()),
        Err(stopped) => Failed::Stop(stopped),
    }
}

/// The last line that one of our programs wrote to the machine's console.
pub(crate) fn last_words(provider: &dyn Provider, machine: &Machine) -> Option<String> {
    let lines = provider.console(&machine.name);
    let words = lines.iter().rev().find_map(|line| line.split_once("constellation: "));
    words.map(|(_, words)| format!("{}: {words}", machine.name))
}

/// Whether anything on the node answers, whatever it says: the verification service, which every node has.
pub(crate) async fn answers(machine: &Machine) -> bool {
    // Plain HTTP: the system's certificates are not needed, and may be missing.
    let client = reqwest::Client::builder().tls_certs_only([]).no_proxy();
    // A node does not choose what this machine connects to.
    let client = client.redirect(Policy::none()).timeout(ANSWER_LIMIT).build();
    let client = client.expect("a client without certificates needs nothing of the system");
    let address = format!("http://{}:{}/", machine.host, machine.ports.verify_http);
    client.get(address).send().await.is_ok()
}

#[cfg(test)]
mod tests {
    use infrastructure::NodePorts;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    fn machine(port: u16) -> Machine {
        Machine {
            name: "worker-0".parse().unwrap(),
            role: NodeRole::Worker,
            address: [192, 168, 77, 10].into(),
            host: "127.0.0.1".to_owned(),
            ports: NodePorts {
                bootstrapper: 0,
                kubernetes: 0,
                verify_http: port,
                verify: 0,
                join: 0,
            },
            start: String::new(),
            status: MachineStatus::Running,
        }
    }

    /// What forwards a port takes connections for a node that is gone.
    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_open_does_not_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let begun = Instant::now();
        assert!(!answers(&machine(listener.local_addr().unwrap().port())).await);
        assert!(begun.elapsed() <= ANSWER_LIMIT + Duration::from_secs(1));
    }

    /// The port of a node that gives this answer.
    async fn answering(head: String) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await
        });
        port
    }

    #[tokio::test]
    async fn a_node_answers_also_with_an_error() {
        let port = answering("400 Bad Request".to_owned()).await;
        assert!(answers(&machine(port)).await);
    }

    /// They are read once per process, so another process does it.
    #[test]
    fn the_systems_certificates_are_not_needed() {
        let same = std::env::current_exe().unwrap();
        let status = std::process::Command::new(same)
            .args(["--exact", "machines::tests::a_node_answers_also_with_an_error"])
            .env("SSL_CERT_FILE", "/nonexistent")
            .env("SSL_CERT_DIR", "/nonexistent")
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    #[tokio::test]
    async fn a_node_that_redirects_answers_and_is_not_followed() {
        let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = elsewhere.local_addr().unwrap();
        let port = answering(format!("302 Found\r\nlocation: http://{address}/")).await;
        assert!(answers(&machine(port)).await);
        elsewhere.set_nonblocking(true).unwrap();
        let followed = elsewhere.accept().map_err(|error| error.kind());
        assert_eq!(followed.unwrap_err(), std::io::ErrorKind::WouldBlock);
    }
}
