//! `GetDataKey`, as the join service calls it.

use std::sync::Arc;

use anyhow::Result;
use cluster_types::key_service::AUDIENCE;
use test_figures::{Clock, Samples, WARM_UP};
use test_services::KeyService;

use crate::load::{CALLERS, Load, Meter, side_by_side};
use crate::progress::say;

const ROUNDS: usize = 500;
const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";

pub(crate) async fn measure(service: &KeyService) -> Result<Load> {
    say("asking the key service for keys");
    let client = Arc::new(service.client("join-service", Some(AUDIENCE)).await?);
    let meter = Meter::start(service.process().id())?;
    let alone = Samples::take_async(Clock::Wall, ROUNDS, async || {
        client.data_key(DISK).await?;
        Ok(())
    });
    let alone = alone.await?;
    let each = meter.each(WARM_UP + ROUNDS)?;
    let callers = (0..CALLERS).map(|_| {
        let client = client.clone();
        async move {
            for _ in 0..ROUNDS / CALLERS {
                client.data_key(DISK).await?;
            }
            Ok(())
        }
    });
    Ok(Load {
        alone,
        together: Some(side_by_side(ROUNDS / CALLERS, callers).await?),
        each: Some(each),
    })
}
