//! The secrets of the cluster are searched for everywhere they must not be.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine};
use cluster_config::names;
use e2e::{Cluster, Image};
use key_derivation::{DiskOwner, Label};
use serde_json::Value;

/// A secret and how it could be written down.
struct Secret {
    title: &'static str,
    forms: Vec<Vec<u8>>,
}

/// What somebody could read.
struct Text {
    place: String,
    bytes: Vec<u8>,
}

impl Secret {
    fn new(title: &'static str, bytes: &[u8]) -> Self {
        let forms = [
            hex(bytes),
            BASE64_STANDARD_NO_PAD.encode(bytes),
            BASE64_URL_SAFE_NO_PAD.encode(bytes),
            format!("{bytes:?}"),
        ];
        Self {
            title,
            forms: forms
                .into_iter()
                .map(String::into_bytes)
                .chain([bytes.to_vec()])
                .collect(),
        }
    }

    fn is_in(&self, text: &[u8]) -> bool {
        self.forms.iter().any(|form| contains(text, form))
    }
}

/// Every file of this machine about the cluster, every log of a pod in `kube-system`, the journals of both nodes, the audit logs of the
/// control plane, and every object of the cluster. That the search finds things shows where they may be.
pub(crate) fn no_secret_is_in_a_log_or_an_object(cluster: &Cluster, _: &Image) -> Result<()> {
    let texts = texts(cluster)?;
    search(cluster, &texts)?;
    let joined = texts
        .iter()
        .any(|text| text.place.contains("journal") && contains(&text.bytes, b"joining"));
    ensure!(
        joined,
        "no journal tells of the join: the search looks in the wrong place"
    );
    Ok(())
}

/// What the programs of this machine and the consoles of the nodes said while the nodes came back.
pub(crate) fn no_secret_is_in_a_log_of_this_machine(cluster: &Cluster, _: &Image) -> Result<()> {
    let texts = logs(cluster)?;
    let recovered = texts.iter().any(|text| contains(&text.bytes, b"recovery accepted"));
    ensure!(
        recovered,
        "no console tells of the recovery: the search looks in the wrong place"
    );
    search(cluster, &texts)
}

fn search(cluster: &Cluster, texts: &[Text]) -> Result<()> {
    let secrets = secrets(cluster)?;
    let allowed = fs::read(cluster.workspace().join(names::MASTER_SECRET))?;
    ensure!(secrets[0].is_in(&allowed), "the search does not find what is there");
    cluster.say(&format!("searching {} logs and lists of objects", texts.len()));
    for text in texts {
        for secret in &secrets {
            ensure!(!secret.is_in(&text.bytes), "{} is in {}", secret.title, text.place);
        }
    }
    Ok(())
}

fn secrets(cluster: &Cluster) -> Result<Vec<Secret>> {
    let master_secret = cluster.master_secret()?;
    let kek = master_secret.kek();
    let state = cluster.state()?;
    let mut secrets = vec![
        Secret::new("the master secret", master_secret.expose_key()),
        Secret::new(
            "the key with which the key service signs",
            &*kek.derive_array(Label::KeyServiceIdentity),
        ),
        Secret::new("the measurement secret", kek.measurement_secret().expose()),
        Secret::new("the init secret", state.init_secret.expose()),
    ];
    let nodes = state.infrastructure.as_ref().context("no machines")?.nodes.len();
    ensure!(state.identities.len() == nodes, "not every node's identity is known");
    for (node, identity) in &state.identities {
        let disk = cluster.state_disk(node.as_str())?;
        let owner = DiskOwner {
            cluster: state.cluster_id.context("no cluster id")?,
            machine: *identity.as_bytes(),
            role: cluster.machine(node.as_str())?.role,
        };
        let key = kek.state_disk_key(disk, &owner);
        secrets.push(Secret::new("the key of a state disk", key.expose()));
    }
    Ok(secrets)
}

fn logs(cluster: &Cluster) -> Result<Vec<Text>> {
    let read = |log: PathBuf| {
        Ok(Text {
            bytes: fs::read(&log)?,
            place: log.display().to_string(),
        })
    };
    cluster.logs()?.into_iter().map(read).collect()
}

fn texts(cluster: &Cluster) -> Result<Vec<Text>> {
    let mut texts = logs(cluster)?;
    let mut query = |arguments: &[&str]| -> Result<()> {
        texts.push(Text {
            place: arguments.join(" "),
            bytes: cluster.kubectl_bytes(arguments)?,
        });
        Ok(())
    };
    for pod in cluster
        .kubectl(["get", "pods", "--namespace", "kube-system", "--output", "name"])?
        .lines()
    {
        query(&["logs", "--namespace", "kube-system", "--all-containers", pod])?;
    }
    for node in ["control-plane-0", "worker-0"] {
        for log in node_logs(cluster, node)? {
            query(&["get", "--raw", &log])?;
        }
    }
    let objects = objects(cluster)?;
    texts.extend(contents(&objects)?);
    texts.push(Text {
        place: "an object".to_owned(),
        bytes: objects.to_string().into_bytes(),
    });
    Ok(texts)
}

/// Every object of every kind.
fn objects(cluster: &Cluster) -> Result<Value> {
    let kinds = cluster.kubectl(["api-resources", "--verbs=list", "--output", "name"])?;
    let kinds: Vec<&str> = kinds.lines().collect();
    let objects = cluster.kubectl_bytes(["get", &kinds.join(","), "--all-namespaces", "--output", "json"])?;
    Ok(serde_json::from_slice(&objects)?)
}

/// What Secrets hold, and ConfigMaps besides text: base64 would hide it from the search.
fn contents(objects: &Value) -> Result<Vec<Text>> {
    let mut contents = Vec::new();
    for object in objects["items"].as_array().context("no objects")? {
        let encoded = match object["kind"].as_str() {
            Some("Secret") => &object["data"],
            Some("ConfigMap") => &object["binaryData"],
            _ => continue,
        };
        for (key, value) in encoded.as_object().into_iter().flatten() {
            contents.push(Text {
                place: format!("{} of {}", key, object["metadata"]["name"]),
                bytes: BASE64_STANDARD.decode(value.as_str().context("data is text")?)?,
            });
        }
    }
    ensure!(!contents.is_empty(), "the cluster has no Secret");
    Ok(contents)
}

/// The addresses of a node's journal files and, on a control plane, of its audit logs. kubelet serves `/var/log`.
fn node_logs(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let root = format!("/api/v1/nodes/{node}/proxy/logs/");
    let mut logs = Vec::new();
    for folder in links(cluster, &format!("{root}journal/"))? {
        let folder = format!("{root}journal/{folder}");
        logs.extend(
            links(cluster, &folder)?
                .into_iter()
                .map(|file| format!("{folder}{file}")),
        );
    }
    ensure!(!logs.is_empty(), "{node} has no journal");
    if node.starts_with("control-plane") {
        let folder = format!("{root}constellation/");
        let of_key_service = links(cluster, &folder)?;
        ensure!(
            of_key_service.contains(&"key-audit.log".to_owned()),
            "{of_key_service:?}"
        );
        logs.extend(of_key_service.into_iter().map(|log| format!("{folder}{log}")));
        logs.push(format!("{root}kubernetes/audit/audit.log"));
    }
    Ok(logs)
}

/// The entries of a folder that kubelet serves as a page of links.
fn links(cluster: &Cluster, folder: &str) -> Result<Vec<String>> {
    let page = cluster.kubectl(["get", "--raw", folder])?;
    let links = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    Ok(links.map(str::to_owned).collect())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
