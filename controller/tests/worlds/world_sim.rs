//! The simulated devices, and the models on them.

use hush_controller::simulate::trace::SplitMix64;
use hush_residency::machine::{CommandId, UnloadCommand};

use crate::device_sim::DeviceSim;
use crate::model_sim::{CommandReply, ModelSim, SimContext};
use crate::scenario::Scenario;

#[derive(Debug)]
pub struct WorldSim {
    pub devices: Vec<DeviceSim>,
    pub models: Vec<ModelSim>,
    dice: SplitMix64,
}

/// A command as a server gets it.
#[derive(Clone, Copy, Debug)]
pub enum SimulatedCommand {
    Unload(UnloadCommand),
    Load,
}

impl WorldSim {
    pub fn new(scenario: &Scenario, dice: &mut SplitMix64) -> Self {
        let models = scenario.models.iter().map(|spec| ModelSim::new(spec.clone(), dice)).collect();
        Self { devices: scenario.devices.clone(), models, dice: SplitMix64(dice.next()) }
    }

    /// Applies what is due by `now`. Gives the replies to commands that have ended.
    pub fn advance(&mut self, now: u64) -> Vec<(CommandId, CommandReply)> {
        let mut replies = Vec::new();
        for device in &mut self.devices {
            device.advance(now, &mut self.dice);
        }

        for model in &mut self.models {
            let device = &mut self.devices[model.spec.device];
            model.advance(&mut SimContext { now, device, dice: &mut self.dice, replies: &mut replies });
        }

        replies
    }

    /// Gives a command to the server of a model. Gives the replies that follow at once.
    pub fn carry_out(
        &mut self,
        now: u64,
        model_index: usize,
        command: CommandId,
        server_command: SimulatedCommand,
    ) -> Vec<(CommandId, CommandReply)> {
        let mut replies = Vec::new();
        let model = &mut self.models[model_index];
        let device = &mut self.devices[model.spec.device];
        let mut context = SimContext { now, device, dice: &mut self.dice, replies: &mut replies };

        match server_command {
            SimulatedCommand::Unload(unload) => model.unload(command, unload, &mut context),
            SimulatedCommand::Load => model.load(command, &mut context),
        }

        replies
    }

    /// From now on no requests come, no other program holds memory, and nothing goes wrong.
    pub fn come_to_rest(&mut self) {
        self.devices.iter_mut().for_each(DeviceSim::come_to_rest);
        self.models.iter_mut().for_each(ModelSim::come_to_rest);
    }
}
