//! Frames of the attested exchange, which a peer sends before anything is known of it.

#![no_main]

#[allow(dead_code, reason = "a module of the crate, which does not offer it to others")]
#[path = "../../crates/attested-tls/src/frame.rs"]
mod frame;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::Builder;

fuzz_target!(|bytes: &[u8]| {
    let runtime = Builder::new_current_thread()
        .build()
        .expect("a runtime without I/O needs nothing");
    runtime.block_on(async {
        let Ok(kind) = frame::read(&mut &bytes[..]).await else {
            return;
        };
        let mut again = Vec::new();
        frame::write(&mut again, kind.clone())
            .await
            .expect("memory takes everything");
        assert_eq!(frame::read(&mut &again[..]).await.ok(), Some(kind));
    });
});
