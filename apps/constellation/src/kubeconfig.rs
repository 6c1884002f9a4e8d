//! The administrator's kubeconfig.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use cluster_config::{Workspace, from_yaml, names};
use error_report::Chain;
use kube::config::{Cluster, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use polling::Schedule;
use zeroize::Zeroizing;

use crate::output::shown;

/// A node's kubeconfig, with the address at which this machine reaches the API server.
pub(crate) fn rewrite(kubeconfig: &[u8], host: &str, port: u16) -> Result<Zeroizing<String>> {
    let text = str::from_utf8(kubeconfig).context("the node's kubeconfig is not text")?;
    let mut config: Kubeconfig = from_yaml(text).context("cannot parse the node's kubeconfig")?;
    only_cluster(&mut config)?.server = Some(address(host, port));
    Ok(Zeroizing::new(serde_saphyr::to_string(&config)?))
}

/// Whether a cluster of a kubeconfig, which the user may have changed, has a server at this port, whatever this machine is called.
pub(crate) fn leads_to(kubeconfig: &[u8], port: u16) -> bool {
    let config = str::from_utf8(kubeconfig).ok().and_then(|text| from_yaml(text).ok());
    let clusters = config.into_iter().flat_map(|config: Kubeconfig| config.clusters);
    let mut servers = clusters.filter_map(|named| named.cluster?.server);
    let end = format!(":{port}");
    servers.any(|server| server.trim_end_matches('/').ends_with(&end))
}

/// Where this machine reaches the API server.
pub(crate) fn address(host: &str, port: u16) -> String {
    format!("https://{host}:{port}")
}

fn only_cluster(config: &mut Kubeconfig) -> Result<&mut Cluster> {
    let count = config.clusters.len();
    let [cluster] = config.clusters.as_mut_slice() else {
        bail!("the node's kubeconfig has {count} clusters, expected one");
    };
    cluster
        .cluster
        .as_mut()
        .context("the node's kubeconfig has an empty cluster")
}

/// The API server of a new cluster restarts from time to time.
pub(crate) fn api_schedule() -> Schedule {
    Schedule::every(Duration::from_secs(2), Duration::from_secs(300))
}

/// A client with the rights of the workspace's kubeconfig.
pub(crate) async fn client(workspace: &Workspace) -> Result<Client> {
    client_with(workspace, |_| {}).await
}

/// The same that hears each refusal at once, for commands that ask again themselves and say meanwhile what the API server said. Others
/// ask again up to fifteen times when it is busy, or a PodDisruptionBudget says no.
pub(crate) async fn impatient_client(workspace: &Workspace) -> Result<Client> {
    client_with(workspace, |config| config.default_retry = false).await
}

async fn client_with(workspace: &Workspace, change: impl FnOnce(&mut Config)) -> Result<Client> {
    // kube builds its own TLS configuration and asks for the process's provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let path = workspace.path(names::ADMIN_CONF);
    let text = workspace.admin_conf()?;
    let unusable = || format!("cannot use {} (restore it from a backup)", path.display());
    let kubeconfig: Kubeconfig = from_yaml(&text).with_context(unusable)?;
    let client = without_proxy(kubeconfig).await.and_then(|mut config| {
        change(&mut config);
        Ok(Client::try_from(config)?)
    });
    client
        .context("current-context, or the cluster or user that it names, is missing or incomplete")
        .with_context(unusable)
}

/// The API server is at an address of this machine or of the cluster, where no proxy can reach it: neither the file's nor
/// one of the environment is used.
async fn without_proxy(mut kubeconfig: Kubeconfig) -> Result<Config> {
    for cluster in kubeconfig
        .clusters
        .iter_mut()
        .filter_map(|named| named.cluster.as_mut())
    {
        // kube looks at the environment, and may fail because of it, only if the file names no proxy.
        cluster.proxy_url = Some("http://ignored.invalid".to_owned());
    }
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(config)
}

/// Why Kubernetes did not answer, or did not do what it was asked for, as part of a line.
pub(crate) fn in_words(error: &kube::Error) -> String {
    shown(&words(error))
}

fn words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("the API server refused the request: {}", status.message);
    }
    let mut causes = std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |cause| {
        cause.source()
    });
    match causes.find_map(|cause| cause.downcast_ref::<std::io::Error>()) {
        Some(cause) => format!("cannot reach the API server: {cause}"),
        None => Chain(error).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    const NODE: &str = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://10.42.1.100:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: kubernetes-admin
  name: kubernetes-admin@kubernetes
current-context: kubernetes-admin@kubernetes
kind: Config
users:
- name: kubernetes-admin
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: S0VZ
";

    #[test]
    fn only_the_address_changes() {
        let rewritten = rewrite(NODE.as_bytes(), "127.0.0.1", 16443).unwrap();
        let value = |text: &str| serde_saphyr::from_str::<serde_json::Value>(text).unwrap();
        let mut expected = value(NODE);
        expected["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:16443".into();
        assert_eq!(value(&rewritten), expected);
    }

    #[test]
    fn an_edited_file_leads_where_one_of_its_servers_is() {
        let merged = NODE.replace(
            "contexts:",
            "- cluster:\n    server: https://localhost:7443/\n  name: other\ncontexts:",
        );
        for (text, port, expected) in [
            (NODE, 6443, true),
            (NODE, 443, false),
            (&merged, 7443, true),
            (&merged, 6443, true),
            (&merged, 8443, false),
            ("clusters: 5", 6443, false),
        ] {
            assert_eq!(leads_to(text.as_bytes(), port), expected, "{port}: {text}");
        }
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_be_reached_is_told_from_one_that_refuses() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::try_from(Config::new(closed.parse().unwrap())).unwrap();
        let error = client.apiserver_version().await.unwrap_err();
        let words = in_words(&error);
        assert!(
            words.starts_with("cannot reach the API server: Connection refused"),
            "{words}"
        );

        let forbidden = Status::failure("nodes is forbidden\u{1b}[2J", "Forbidden").with_code(403);
        let words = in_words(&kube::Error::Api(Box::new(forbidden)));
        assert!(
            words.starts_with("the API server refused the request: nodes is forbidden"),
            "{words}"
        );
        assert!(!words.contains('\u{1b}'), "{words}");
    }

    #[test]
    fn another_number_of_clusters_is_refused() {
        let none = NODE.replace("- cluster:", "- other:");
        for bad in ["", "clusters: []", "\u{0}", &none] {
            assert!(rewrite(bad.as_bytes(), "127.0.0.1", 1).is_err(), "{bad}");
        }
    }
}
