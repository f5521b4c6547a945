//! What must hold once everything has come to rest.

use hush_core::ResidencyState;

use super::{Broken, Watch, ensure};
use crate::house::House;

/// How long a world rests before its end: holds, pauses and the patience with lost commands are over by then.
pub const REST_MS: u64 = 20 * 60_000;

/// No request is lost: each is answered; or those before it are; or its model waits for memory that nobody may give it,
/// or may not stay, because it alone is hard pressure by its policy.
pub fn at_the_end(now: u64, house: &House, watch: &Watch) -> Result<(), Broken> {
    for (place, guest) in house.guests.iter().enumerate() {
        let waiting = guest.unanswered();
        let answered = guest.answered;
        ensure(answered.arrived == answered.served + answered.refused + waiting, || {
            format!("requests are lost: {answered:?}, {waiting} wait: {}", guest.spec.key)
        })?;
        let device = &house.devices[guest.spec.device];
        let short = guest.state() == ResidencyState::WaitingForMemory
            && guest.sample(now, device).demand_bytes > device.available_bytes();
        let served = now - guest.served_at < REST_MS / 2;
        ensure(waiting == 0 || short || served || watch.not_suffered(place), || {
            format!("{waiting} wait for nothing: {:?} {}", guest.state(), guest.spec.key)
        })?;
    }
    Ok(())
}
