//! Which caller may have which key.

use std::fmt;

use cluster_types::Service;
use key_derivation::Label;

/// What a caller requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A derived key.
    DataKey(Label),
    /// The master secret, for a control plane's ticket.
    MasterSecret,
}

impl Access {
    /// A caller that is not named here may have nothing.
    pub(crate) fn is_allowed_to(self, caller: &str) -> bool {
        match self {
            Self::DataKey(Label::MeasurementSecret | Label::Disk(_)) | Self::MasterSecret => {
                caller == Service::Join.username()
            }
            // They have no id on the wire. Should one ever appear, no caller may have it.
            Self::DataKey(Label::KeyServiceIdentity | Label::OperatorIdentity) => false,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataKey(label) => label.fmt(f),
            Self::MasterSecret => f.write_str("masterSecret"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Access {
        Access::DataKey(Label::Disk("3f2504e0-4f89-11d3-9a0c-0305e82c3301".parse().unwrap()))
    }

    #[test]
    fn the_join_service_gets_what_tickets_hold() {
        for access in [disk(), Access::DataKey(Label::MeasurementSecret), Access::MasterSecret] {
            assert!(
                access.is_allowed_to("system:serviceaccount:kube-system:join-service"),
                "{access}"
            );
        }
    }

    #[test]
    fn everybody_else_gets_nothing() {
        let others = [
            "",
            "system:admin",
            "join-service",
            "system:serviceaccount:default:join-service",
            "system:serviceaccount:kube-system:default",
            "system:serviceaccount:kube-system:join-service2",
        ];
        for caller in others {
            for access in [disk(), Access::DataKey(Label::MeasurementSecret), Access::MasterSecret] {
                assert!(!access.is_allowed_to(caller), "{caller} {access}");
            }
        }
    }

    #[test]
    fn identities_are_nobodys() {
        assert!(
            !Access::DataKey(Label::KeyServiceIdentity).is_allowed_to("system:serviceaccount:kube-system:join-service")
        );
        assert!(
            !Access::DataKey(Label::OperatorIdentity).is_allowed_to("system:serviceaccount:kube-system:join-service")
        );
    }
}
