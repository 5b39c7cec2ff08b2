# SPDX-License-Identifier: Apache-2.0
"""The fixed surface (spec 1.1, 1.2) as data: importable names, their arguments and tests, flags of the scripts.

The tables of docs/compatibility.md are generated from it: `python -m tests.compat.page`.
"""

F = "[1, 3, 3, 1]"

# Module -> name -> arguments in order. Defaults listed here are fixed; an argument without one may have any default.
# None: not a function, or its arguments are not fixed.
NAMES: dict[str, dict[str, str | None]] = {
    "dnnlib": {"EasyDict": None, "make_cache_dir_path": "*paths", "util": None},
    "dnnlib.util": {
        "EasyDict": None,
        "Logger": "file_name, file_mode, should_flush",
        "format_time": "seconds",
        "construct_class_by_name": "*args, class_name, **kwargs",
        "call_func_by_name": "*args, func_name, **kwargs",
        "get_obj_by_name": "name",
        "get_module_from_obj_name": None,
        "get_top_level_function_name": None,
        "list_dir_recursively_with_ignore": None,
        "copy_files_and_create_dirs": None,
        "is_url": "obj, allow_file_urls=False",
        "open_url": "url, cache_dir=None, num_attempts=10, verbose=True, return_filename=False, cache=True",
    },
    "torch_utils.misc": {
        "constant": "value, shape, dtype, device, memory_format",
        "nan_to_num": None,
        "symbolic_assert": None,
        "suppress_tracer_warnings": "",
        "assert_shape": "tensor, ref_shape",
        "profiled_function": "fn",
        "InfiniteSampler": None,
        "params_and_buffers": "module",
        "named_params_and_buffers": "module",
        "copy_params_and_buffers": "src_module, dst_module, require_all=False",
        "ddp_sync": "module, sync",
        "check_ddp_consistency": "module, ignore_regex=None",
        "print_module_summary": "module, inputs, max_nesting=3, skip_redundant=True",
    },
    "torch_utils.persistence": {
        "persistent_class": "orig_class",
        "is_persistent": "obj",
        "import_hook": "hook",
        "_reconstruct_persistent_obj": "meta",
    },
    "torch_utils.training_stats": {
        "init_multiprocessing": "rank, sync_device",
        "report": "name, value",
        "report0": "name, value",
        "Collector": "regex='.*', keep_previous=True",
    },
    "torch_utils.custom_ops": {"verbosity": None, "get_plugin": "module_name, sources, **build_kwargs"},
    "torch_utils.ops.bias_act": {
        "bias_act": "x, b=None, dim=1, act='linear', alpha=None, gain=None, clamp=None, impl='cuda'",
        "activation_funcs": None,
    },
    "torch_utils.ops.upfirdn2d": {
        "setup_filter": "f, device, normalize=True, flip_filter=False, gain=1, separable=None",
        "upfirdn2d": "x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl='cuda'",
        "filter2d": "x, f, padding=0, flip_filter=False, gain=1, impl='cuda'",
        "upsample2d": "x, f, up=2, padding=0, flip_filter=False, gain=1, impl='cuda'",
        "downsample2d": "x, f, down=2, padding=0, flip_filter=False, gain=1, impl='cuda'",
    },
    "torch_utils.ops.conv2d_resample": {
        "conv2d_resample": "x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False"
    },
    "torch_utils.ops.conv2d_gradfix": {
        "conv2d": "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1",
        "conv_transpose2d": "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1",
        "no_weight_gradients": "",
        "enabled": None,
    },
    "torch_utils.ops.grid_sample_gradfix": {"grid_sample": "input, grid", "enabled": None},
    "torch_utils.ops.fma": {"fma": "a, b, c"},
    "training.networks": {
        "normalize_2nd_moment": None,
        "modulated_conv2d": None,
        "FullyConnectedLayer": None,
        "Conv2dLayer": None,
        "MappingNetwork": None,
        "SynthesisLayer": None,
        "ToRGBLayer": None,
        "SynthesisBlock": None,
        "SynthesisNetwork": None,
        "Generator": None,
        "DiscriminatorBlock": None,
        "MinibatchStdLayer": None,
        "DiscriminatorEpilogue": None,
        "Discriminator": None,
    },
    "training.augment": {"AugmentPipe": None},
    "training.dataset": {"Dataset": None, "ImageFolderDataset": None},
    "training.loss": {
        "Loss": None,
        "StyleGAN2Loss": "device, G_mapping, G_synthesis, D, augment_pipe=None, style_mixing_prob=0.9, r1_gamma=10, "
        "pl_batch_shrink=2, pl_decay=0.01, pl_weight=2",
    },
    "training.training_loop": {
        "training_loop": None,
        "setup_snapshot_image_grid": "training_set, random_seed=0",
        "save_image_grid": "img, fname, drange, grid_size",
    },
    "metrics.metric_main": {
        "register_metric": "fn",
        "is_valid_metric": "metric",
        "list_valid_metrics": "",
        "calc_metric": "metric, **kwargs",
        "report_metric": "result_dict, run_dir, snapshot_pkl",
    },
    "metrics.metric_utils": {
        "MetricOptions": None,
        "FeatureStats": None,
        "ProgressMonitor": None,
        "get_feature_detector": None,
        "compute_feature_stats_for_dataset": None,
        "compute_feature_stats_for_generator": None,
    },
    "legacy": {"load_network_pkl": "f, force_fp16=False"},
}

# Class -> constructor arguments; an argument without a default has none.
CONSTRUCTORS: dict[str, str] = {
    "training.networks.FullyConnectedLayer": "in_features, out_features, bias=True, activation='linear', "
    "lr_multiplier=1, bias_init=0",
    "training.networks.Conv2dLayer": "in_channels, out_channels, kernel_size, bias=True, activation='linear', up=1, "
    f"down=1, resample_filter={F}, conv_clamp=None, channels_last=False, trainable=True",
    "training.networks.MappingNetwork": "z_dim, c_dim, w_dim, num_ws, num_layers=8, embed_features=None, "
    "layer_features=None, activation='lrelu', lr_multiplier=0.01, w_avg_beta=0.995",
    "training.networks.SynthesisLayer": "in_channels, out_channels, w_dim, resolution, kernel_size=3, up=1, "
    f"use_noise=True, activation='lrelu', resample_filter={F}, conv_clamp=None, channels_last=False",
    "training.networks.ToRGBLayer": "in_channels, out_channels, w_dim, kernel_size=1, conv_clamp=None, "
    "channels_last=False",
    "training.networks.SynthesisBlock": "in_channels, out_channels, w_dim, resolution, img_channels, is_last, "
    f"architecture='skip', resample_filter={F}, conv_clamp=None, use_fp16=False, fp16_channels_last=False, "
    "**layer_kwargs",
    "training.networks.SynthesisNetwork": "w_dim, img_resolution, img_channels, channel_base=32768, channel_max=512, "
    "num_fp16_res=0, **block_kwargs",
    "training.networks.Generator": "z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs={}, "
    "synthesis_kwargs={}",
    "training.networks.DiscriminatorBlock": "in_channels, tmp_channels, out_channels, resolution, img_channels, "
    f"first_layer_idx, architecture='resnet', activation='lrelu', resample_filter={F}, conv_clamp=None, "
    "use_fp16=False, fp16_channels_last=False, freeze_layers=0",
    "training.networks.MinibatchStdLayer": "group_size, num_channels=1",
    "training.networks.DiscriminatorEpilogue": "in_channels, cmap_dim, resolution, img_channels, "
    "architecture='resnet', mbstd_group_size=4, mbstd_num_channels=1, activation='lrelu', conv_clamp=None",
    "training.networks.Discriminator": "c_dim, img_resolution, img_channels, architecture='resnet', "
    "channel_base=32768, channel_max=512, num_fp16_res=0, conv_clamp=None, cmap_dim=None, block_kwargs={}, "
    "mapping_kwargs={}, epilogue_kwargs={}",
    "training.augment.AugmentPipe": "xflip=0, rotate90=0, xint=0, xint_max=0.125, scale=0, rotate=0, aniso=0, xfrac=0, "
    "scale_std=0.2, rotate_max=1, aniso_std=0.2, xfrac_std=0.125, brightness=0, contrast=0, lumaflip=0, hue=0, "
    "saturation=0, brightness_std=0.2, contrast_std=0.5, hue_max=1, saturation_std=1, imgfilter=0, "
    "imgfilter_bands=[1, 1, 1, 1], imgfilter_std=1, noise=0, cutout=0, noise_std=0.1, cutout_size=0.5",
    "metrics.metric_utils.MetricOptions": "G=None, G_kwargs={}, dataset_kwargs={}, num_gpus=1, rank=0, device=None, "
    "progress=None, cache=True",
}

METHODS: dict[str, str] = {
    "training.networks.Conv2dLayer.forward": "x, gain=1",
    "training.networks.MappingNetwork.forward": "z, c, truncation_psi=1, truncation_cutoff=None, "
    "skip_w_avg_update=False",
    "training.networks.SynthesisLayer.forward": "x, w, noise_mode='random', fused_modconv=True, gain=1",
    "training.networks.ToRGBLayer.forward": "x, w, fused_modconv=True",
    "training.networks.SynthesisBlock.forward": "x, img, ws, force_fp32=False, fused_modconv=None, **layer_kwargs",
    "training.networks.SynthesisNetwork.forward": "ws, **block_kwargs",
    "training.networks.Generator.forward": "z, c, truncation_psi=1, truncation_cutoff=None, **synthesis_kwargs",
    "training.networks.Discriminator.forward": "img, c, force_fp32=False",
    "training.augment.AugmentPipe.forward": "images, debug_percentile=None",
    "training.loss.Loss.accumulate_gradients": "phase, real_img, real_c, gen_z, gen_c, sync, gain",
    "training.loss.StyleGAN2Loss.accumulate_gradients": "phase, real_img, real_c, gen_z, gen_c, sync, gain",
    "torch_utils.training_stats.Collector.names": "",
    "torch_utils.training_stats.Collector.update": "",
    "torch_utils.training_stats.Collector.num": "name",
    "torch_utils.training_stats.Collector.mean": "name",
    "torch_utils.training_stats.Collector.std": "name",
    "torch_utils.training_stats.Collector.as_dict": "",
    "torch_utils.training_stats.Collector.__getitem__": "name",
}

METRICS = ["fid50k_full", "kid50k_full", "pr50k3_full", "ppl2_wend", "is50k", "fid50k", "kid50k", "pr50k3"]
METRICS += ["ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend"]

# Module -> test file -> names of NAMES that it uses; "*" for all of them.
TESTS: dict[str, dict[str, str]] = {
    "dnnlib": {"dnnlib/test_util.py": "*"},
    "dnnlib.util": {
        "dnnlib/test_util.py": "EasyDict Logger format_time construct_class_by_name call_func_by_name get_obj_by_name "
        "get_module_from_obj_name get_top_level_function_name list_dir_recursively_with_ignore "
        "copy_files_and_create_dirs",
        "dnnlib/test_urls.py": "is_url open_url",
    },
    "torch_utils.misc": {
        "torch_utils/test_misc.py": "constant nan_to_num symbolic_assert suppress_tracer_warnings assert_shape "
        "profiled_function InfiniteSampler params_and_buffers named_params_and_buffers copy_params_and_buffers "
        "ddp_sync print_module_summary",
        "torch_utils/test_distributed.py": "ddp_sync check_ddp_consistency",
    },
    "torch_utils.persistence": {"torch_utils/test_persistence.py": "*"},
    "torch_utils.training_stats": {
        "torch_utils/test_training_stats.py": "report report0 Collector",
        "compat/test_parts.py": "init_multiprocessing",
    },
    "torch_utils.custom_ops": {"torch_utils/test_custom_ops.py": "*"},
    "torch_utils.ops.bias_act": {
        "torch_utils/ops/test_bias_act.py": "*",
        "torch_utils/ops/test_golden_ops.py": "bias_act",
    },
    "torch_utils.ops.upfirdn2d": {
        "torch_utils/ops/test_upfirdn2d.py": "*",
        "torch_utils/ops/test_golden_ops.py": "setup_filter upfirdn2d",
    },
    "torch_utils.ops.conv2d_resample": {
        "torch_utils/ops/test_conv2d_resample.py": "*",
        "torch_utils/ops/test_golden_ops.py": "*",
    },
    "torch_utils.ops.conv2d_gradfix": {"torch_utils/ops/test_conv2d_gradfix.py": "*"},
    "torch_utils.ops.grid_sample_gradfix": {"torch_utils/ops/test_grid_sample_gradfix.py": "*"},
    "torch_utils.ops.fma": {"torch_utils/ops/test_fma.py": "*"},
    "training.networks": {
        "compat/test_parts.py": "*",
        "training/test_networks.py": "Generator Discriminator modulated_conv2d MinibatchStdLayer",
    },
    "training.augment": {"training/test_augment.py": "*"},
    "training.dataset": {"training/test_dataset.py": "*"},
    "training.loss": {"training/test_loss.py": "StyleGAN2Loss", "compat/test_surface.py": "Loss"},
    "training.training_loop": {
        "training/test_training_loop.py": "training_loop",
        "training/test_sample_grid.py": "setup_snapshot_image_grid save_image_grid",
    },
    "metrics.metric_main": {"metrics/test_metric_main.py": "*"},
    "metrics.metric_utils": {
        "metrics/test_metric_utils.py": "MetricOptions ProgressMonitor compute_feature_stats_for_dataset "
        "compute_feature_stats_for_generator",
        "metrics/test_feature_stats.py": "FeatureStats",
        "compat/test_parts.py": "get_feature_detector",
    },
    "legacy": {"scripts/test_legacy.py": "*"},
}

# Script -> flags of StyleGAN2-ADA.
FLAGS: dict[str, str] = {
    "train": "outdir gpus snap metrics seed dry-run data cond subset mirror cfg gamma kimg batch aug p target augpipe "
    "resume freezed fp32 nhwc nobench allow-tf32 workers",
    "calc_metrics": "network metrics data mirror gpus verbose",
    "generate": "network seeds trunc class noise-mode projected-w outdir",
    "style_mixing": "network rows cols styles trunc noise-mode outdir",
    "projector": "network target num-steps seed save-video outdir",
    "dataset_tool": "source dest max-images resize-filter transform width height",
    "legacy": "source dest force-fp16",
}
