//! The invariants that hold once everything has come to rest.

use hush_core::ResidencyState;

use super::{InvariantTracker, Violation, ensure};
use crate::world_sim::WorldSim;

/// How long a world rests before its end: by then holds, pauses and the deadlines of lost commands are over.
pub const REST_MS: u64 = 20 * 60_000;

/// No request is lost. Each is answered, or those before it are being answered; or its model waits for memory that no
/// other model may free, or may not stay, because by its policy this model alone causes hard pressure.
pub fn at_the_end(now: u64, world_sim: &WorldSim, tracker: &InvariantTracker) -> Result<(), Violation> {
    for (index, model) in world_sim.models.iter().enumerate() {
        let waiting = model.unanswered();
        let answered = model.answered;
        ensure(answered.arrived == answered.served + answered.refused + waiting, || {
            format!("requests are lost: {answered:?}, {waiting} wait: {}", model.spec.key)
        })?;

        let device = &world_sim.devices[model.spec.device];
        let lacks_memory = model.state() == ResidencyState::WaitingForMemory
            && model.sample(now, device).sample.demand_bytes > device.available_bytes();
        let is_served = now - model.served_at < REST_MS / 2;
        ensure(waiting == 0 || lacks_memory || is_served || tracker.left_under_hard_pressure(index), || {
            format!("{waiting} wait for nothing: {:?} {}", model.state(), model.spec.key)
        })?;
    }

    Ok(())
}
