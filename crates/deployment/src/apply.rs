use k8s_openapi::Resource;
use kube::api::{DynamicObject, Patch, PatchParams, TypeMeta};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use serde::Serialize;

/// The owner of the fields that we set.
const FIELD_MANAGER: &str = "constellation";

/// The label by which objects are found that an image deployed.
pub(crate) const DEPLOYED: &str = "constellation/deployed";

/// An object to apply.
pub struct Object {
    pub(crate) resource: ApiResource,
    object: DynamicObject,
}

/// An object that the API server did not accept.
#[derive(Debug, thiserror::Error)]
#[error("cannot apply {kind} {name}")]
pub struct ApplyError {
    kind: String,
    name: String,
    source: Box<kube::Error>,
}

impl ApplyError {
    /// Whether the API server understood the object and will never take it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match &*self.source {
            kube::Error::Api(status) => is_final(status.code),
            _ => false,
        }
    }
}

/// A server that has just started may not know anyone's rights (401, 403) or all resources (404) yet; RFC 9110 and RFC 6585 say the
/// others may succeed later.
#[must_use]
pub fn is_final(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 401 | 403 | 404 | 408 | 409 | 425 | 429)
}

impl Object {
    /// Takes any typed object with a name.
    ///
    /// # Panics
    /// When the object cannot be written as JSON, which no typed object does.
    #[must_use]
    pub fn new<K: Resource + Serialize>(object: K) -> Self {
        let resource = resource::<K>();
        let json = serde_json::to_value(object).expect("typed objects are JSON");
        let mut object: DynamicObject = serde_json::from_value(json).expect("every object has metadata");
        object.types = Some(TypeMeta {
            api_version: resource.api_version.clone(),
            kind: resource.kind.clone(),
        });
        Self { resource, object }
    }

    /// The same object with the label of those that an image deploys. An image that no longer has it removes it.
    pub(crate) fn of_an_image(mut self) -> Self {
        let labels = self.object.metadata.labels.get_or_insert_default();
        labels.insert(DEPLOYED.to_owned(), "true".to_owned());
        self
    }

    /// Kind and name, for progress and logs.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", self.resource.kind, self.name())
    }

    /// Creates or updates the object (server-side apply). Repeating it is harmless.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self, client: &Client) -> Result<(), ApplyError> {
        let api: Api<DynamicObject> = match &self.object.metadata.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(self.name(), &params, &Patch::Apply(&self.object))
            .await
            .map(drop)
            .map_err(|source| ApplyError {
                kind: self.resource.kind.clone(),
                name: self.name().to_owned(),
                source: Box::new(source),
            })
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.object.metadata.namespace.as_deref()
    }

    pub(crate) fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }
}

pub(crate) fn resource<K: Resource>() -> ApiResource {
    let gvk = GroupVersionKind::gvk(K::GROUP, K::VERSION, K::KIND);
    ApiResource::from_gvk_with_plural(&gvk, K::URL_PATH_SEGMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_will_never_take_is_told_from_what_it_does_not_take_yet() {
        for status in [400, 405, 413, 415, 422] {
            assert!(is_final(status), "{status}");
        }
        for status in [401, 403, 404, 408, 409, 429, 500, 503] {
            assert!(!is_final(status), "{status}");
        }
    }
}
