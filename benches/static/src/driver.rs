//! A Vulkan driver, as far as it takes to compile: `VK_KHR_pipeline_executable_properties` tells what it made of a pipeline.

use crate::cases::Case;
use crate::report::Compiled;
use crate::{Result, assembly, spirv};
use ash::vk;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};

/// A device without hardware.
pub struct Driver {
    device: ash::Device,
    executables: ash::khr::pipeline_executable_properties::Device,
    /// The driver's version, `Mesa 22.3.6`.
    pub version: String,
    _instance: ash::Instance,
    _entry: ash::Entry,
}

impl Driver {
    pub fn open() -> Result<Driver> {
        // SAFETY: calls of Vulkan with structures that outlive them; nothing is destroyed, the process ends without
        unsafe {
            let entry = ash::Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let instance = entry
                .create_instance(&vk::InstanceCreateInfo::default().application_info(&application), None)?;
            let physical = *instance.enumerate_physical_devices()?.first().ok_or("no Vulkan device")?;
            let mut about = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut about);
            instance.get_physical_device_properties2(physical, &mut properties);
            let version = text(&about.driver_info);
            let device = open_device(&instance, physical)?;
            let executables = ash::khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Driver { device, executables, version, _instance: instance, _entry: entry })
        }
    }

    pub fn compile(&self, case: &Case) -> Result<Compiled> {
        let module = spirv::compile(case)?;
        let device = &self.device;
        // SAFETY: as above
        unsafe {
            let kind = |uniform| {
                if uniform { vk::DescriptorType::UNIFORM_BUFFER } else { vk::DescriptorType::STORAGE_BUFFER }
            };
            let binding = |&(number, uniform): &(u32, bool)| {
                vk::DescriptorSetLayoutBinding::default()
                    .binding(number)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
                    .descriptor_type(kind(uniform))
            };
            let bindings: Vec<_> = module.bindings.iter().map(binding).collect();
            let set_layout = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&set_layout, None)?];
            let layout = device
                .create_pipeline_layout(&vk::PipelineLayoutCreateInfo::default().set_layouts(&sets), None)?;
            let shader = device
                .create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&module.words), None)?;
            let entry = CString::new(module.entry.as_str())?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE)
                .module(shader)
                .name(&entry);
            let capture = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let info = [vk::ComputePipelineCreateInfo::default().flags(capture).stage(stage).layout(layout)];
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &info, None);
            let pipeline = *made.map_err(|(_, e)| e)?.first().ok_or("no pipeline")?;
            let executable = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            self.compiled(&executable)
        }
    }

    /// By the names that RADV, ANV and NVK have for them.
    fn compiled(&self, executable: &vk::PipelineExecutableInfoKHR<'_>) -> Result<Compiled> {
        let statistics = self.statistics(executable)?;
        let sum = |names: &[&str]| names.iter().filter_map(|name| statistics.get(*name)).sum();
        Ok(Compiled {
            registers: sum(&["VGPRs", "Number of GPRs"]),
            spilled: sum(&["Spilled VGPRs", "Spilled SGPRs", "Spill Count", "Spills to memory"]),
            shared: sum(&["LDS size", "Workgroup Memory Size", "Shared Memory Size"]),
            waves: sum(&["Subgroups per SIMD", "Max warps/SM"]),
            instructions: sum(&["Instructions", "Instruction Count", "Instruction count"]),
            program: assembly::of_radv(&self.assembly(executable)?),
        })
    }

    fn statistics(&self, executable: &vk::PipelineExecutableInfoKHR<'_>) -> Result<BTreeMap<String, u64>> {
        // SAFETY: the union's field is the one that its format names
        let all = unsafe { self.executables.get_pipeline_executable_statistics(executable)? };
        let counts = all.iter().filter(|s| s.format == vk::PipelineExecutableStatisticFormatKHR::UINT64);
        Ok(counts.map(|s| (text(&s.name), unsafe { s.value.u64 })).collect())
    }

    /// The last of the program's forms is its machine code, as text.
    fn assembly(&self, executable: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String> {
        let read = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let handle = self.device.handle();
        let mut count = 0;
        // SAFETY: asked for counts, then for sizes, then for texts of those sizes
        unsafe {
            read(handle, executable, &mut count, std::ptr::null_mut()).result()?;
            let mut forms = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            read(handle, executable, &mut count, forms.as_mut_ptr()).result()?;
            let mut texts: Vec<Vec<u8>> = forms.iter().map(|form| vec![0; form.data_size]).collect();
            for (form, text) in forms.iter_mut().zip(&mut texts) {
                form.p_data = text.as_mut_ptr().cast();
            }
            read(handle, executable, &mut count, forms.as_mut_ptr()).result()?;
            let last = texts.last().map(|text| String::from_utf8_lossy(text)).unwrap_or_default();
            Ok(last.trim_end_matches('\0').to_owned())
        }
    }
}

/// With the features that wgpu asks for, robust buffer access among them.
unsafe fn open_device(instance: &ash::Instance, physical: vk::PhysicalDevice) -> Result<ash::Device> {
    let extensions =
        [ash::khr::pipeline_executable_properties::NAME, ash::ext::robustness2::NAME].map(CStr::as_ptr);
    let mut of_12 =
        vk::PhysicalDeviceVulkan12Features::default().vulkan_memory_model(true).shader_float16(true);
    let mut of_13 =
        vk::PhysicalDeviceVulkan13Features::default().subgroup_size_control(true).maintenance4(true);
    let mut executables =
        vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
    let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
    let mut half = vk::PhysicalDevice16BitStorageFeatures::default().storage_buffer16_bit_access(true);
    let mut features = vk::PhysicalDeviceFeatures2::default()
        .features(vk::PhysicalDeviceFeatures::default().robust_buffer_access(true).shader_int16(true))
        .push_next(&mut of_12)
        .push_next(&mut of_13)
        .push_next(&mut executables)
        .push_next(&mut robust)
        .push_next(&mut half);
    let priorities = [1.0];
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&priorities)];
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&extensions)
        .push_next(&mut features);
    // SAFETY: the caller's instance is alive
    Ok(unsafe { instance.create_device(physical, &info, None)? })
}

fn text(characters: &[c_char]) -> String {
    let bytes: Vec<u8> = characters.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
