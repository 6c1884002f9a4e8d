use std::collections::BTreeMap;

use cluster_types::Service;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::ObjectMeta;
use kubernetes_components::{ComponentList, ParseConfigMapError};

use crate::Cluster;

const COMPONENTS: &str = "components";
const CLUSTER_VERSION: &str = "cluster-version";

/// The list of components could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadComponentsError {
    /// The API server failed, or there is no such list.
    #[error("cannot read the component list {name}")]
    Api {
        /// The name of the ConfigMap.
        name: String,
        /// What the API server answered, or why it could not be reached.
        #[source]
        source: Box<kube::Error>,
    },
    /// It is not a valid list.
    #[error("the component list {name} is invalid")]
    Invalid {
        /// The name of the ConfigMap.
        name: String,
        /// What is wrong with it.
        #[source]
        source: ParseConfigMapError,
    },
}

/// The list as an immutable ConfigMap, named by its hash.
#[must_use]
pub fn components_config_map(list: &ComponentList) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(list.config_map_name()),
            namespace: Some(Service::NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            (COMPONENTS.to_owned(), list.config_map_components()),
            (CLUSTER_VERSION.to_owned(), list.kubernetes_version().to_string()),
        ])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

impl Cluster {
    /// Reads a list of components by the name of its ConfigMap, which pins its content.
    ///
    /// # Errors
    /// When it cannot be read, or its content does not match its name.
    pub async fn components(&self, name: &str) -> Result<ComponentList, ReadComponentsError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client(), Service::NAMESPACE);
        let object = api.get(name).await.map_err(|source| ReadComponentsError::Api {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        let data = object.data.unwrap_or_default();
        let value = |key| data.get(key).map(String::as_str).unwrap_or_default();
        ComponentList::from_config_map(name, value(COMPONENTS), value(CLUSTER_VERSION)).map_err(|source| {
            ReadComponentsError::Invalid {
                name: name.to_owned(),
                source,
            }
        })
    }
}
