use std::collections::BTreeMap;

use aws_lc_rs::rand;
use cluster_types::{NodeName, Service};
use digest::Digest;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use secret::SecretBytes;

use crate::Cluster;

/// Long enough for a kubeadm join under emulation, short enough to be worthless afterwards.
const LIFETIME: SignedDuration = SignedDuration::from_mins(15);
/// 32 characters, so that five random bits choose one of them without bias. All are legal in a bootstrap token.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;
/// kubeadm allows this group to read its configuration and to request kubelet certificates.
const JOINING_NODES: &str = "system:bootstrappers:kubeadm:default-node-token";

/// A token with which kubeadm on a joining node first talks to the API server.
#[derive(Debug)]
pub struct BootstrapToken(SecretBytes);

/// The token could not be stored.
#[derive(Debug, thiserror::Error)]
#[error("cannot store the bootstrap token")]
pub struct CreateBootstrapTokenError(#[source] Box<kube::Error>);

impl BootstrapToken {
    /// The token in clear text, of the form `abcdef.0123456789abcdef`.
    ///
    /// # Panics
    /// Never: it is made of ASCII characters.
    #[must_use]
    pub fn expose(&self) -> &str {
        std::str::from_utf8(self.0.expose()).expect("a token is made of ASCII characters")
    }
}

/// The group of whoever has a token for this node. A name may have characters that a group may not, so its digest stands for it.
#[must_use]
pub fn joining_node_group(node: &NodeName) -> String {
    format!(
        "system:bootstrappers:constellation:{}",
        Digest::of(node.as_str().as_bytes())
    )
}

impl Cluster {
    /// Creates a token with which one node joins. It expires by itself.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create_bootstrap_token(
        &self,
        node: &NodeName,
        now: Timestamp,
    ) -> Result<BootstrapToken, CreateBootstrapTokenError> {
        let (id, secret) = (random_text::<ID_LEN>(), random_text::<SECRET_LEN>());
        let expiration = now.saturating_add(LIFETIME).expect("adding minutes saturates");
        let data = [
            ("token-id", id.as_str()),
            ("token-secret", secret.as_str()),
            ("description", "issued by the join service for one attested node"),
            ("expiration", &expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            ("usage-bootstrap-authentication", "true"),
            (
                "auth-extra-groups",
                &format!("{JOINING_NODES},{}", joining_node_group(node)),
            ),
        ];
        let object = Secret {
            metadata: ObjectMeta {
                name: Some(format!("bootstrap-token-{id}")),
                ..ObjectMeta::default()
            },
            type_: Some("bootstrap.kubernetes.io/token".into()),
            string_data: Some(BTreeMap::from(
                data.map(|(key, value)| (key.to_owned(), value.to_owned())),
            )),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client(), Service::NAMESPACE);
        secrets
            .create(&PostParams::default(), &object)
            .await
            .map_err(|error| CreateBootstrapTokenError(Box::new(error)))?;
        Ok(BootstrapToken(SecretBytes::from_vec(
            format!("{id}.{secret}").into_bytes(),
        )))
    }
}

fn random_text<const N: usize>() -> String {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random source does not fail after boot");
    bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect()
}
