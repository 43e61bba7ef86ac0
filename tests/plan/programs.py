"""Program texts in the forms that libtpu writes them, cut down to what is counted."""

# A data-parallel step in two parts: a matmul in a loop of 4, one exchange of the gradients after
# it, and one of a scalar in every turn. Shapes marked S(1) lie on the chip and not in HBM.
LOOP = """\
HloModule jit_step, is_scheduled=true

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a.1, %b.1)
}

%fused (p.0: bf16[8,16], p.1: bf16[16,32]) -> f32[8,32] {
  %p.0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = f32[8,32]{1,0:T(8,128)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (arg: (s32[], f32[], /*index=2*/bf16[8,16])) -> (s32[], f32[], bf16[8,16]) {
  %arg = (s32[]{:T(128)}, f32[]{:T(128)}, /*index=2*/bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=2
  %w = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %y = f32[8,32]{1,0:T(8,128)} fusion(%x, %w), kind=kOutput, calls=%fused
  %loss = f32[]{:T(128)} constant(1)
  %all-reduce.1 = f32[]{:T(128)} all-reduce(%loss), channel_id=1, \
replica_groups=mesh['axis_0'=4] {'axis_0'}, use_global_device_ids=true, to_apply=%sum
  ROOT %out = (s32[]{:T(128)}, f32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%i, %all-reduce.1, %x)
}

%condition (arg.1: (s32[], f32[], bf16[8,16])) -> pred[] {
  %n = s32[]{:T(128)} constant(4)
  %arg.1 = (s32[]{:T(128)}, f32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (state: (s32[], f32[], bf16[8,16]), g: f32[100], h: f32[7,3]) -> f32[100] {
  %state = (s32[]{:T(128)}, f32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %g = f32[100]{0:T(128)} parameter(1)
  %h = f32[7,3]{0,1:T(4,128)} parameter(2)
  %while = (s32[]{:T(128)}, f32[]{:T(128)}, bf16[8,16]{1,0}) while(%state), \
condition=%condition, body=%body
  %all-reduce.2 = (f32[100]{0:T(128)}, f32[7,3]{0,1:T(4,128)}) all-reduce(%g, %h), channel_id=2, \
replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%sum
  ROOT %got = f32[100]{0:T(128)} get-tuple-element(%all-reduce.2), index=0
}
"""

# Parameters divided between two devices: a gather spread over two fusions under one channel, a
# reduce-scatter in libtpu's form, and an exchange between neighbours.
SHARDED = """\
HloModule jit_step, is_scheduled=true

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a.1, %b.1)
}

%start (p.0: f32[16,8]) -> f32[32,8] {
  %p.0 = f32[16,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[32,8]{1,0} all-gather(%p.0), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={0}
}

%async_collective_fusion.1 (p.1: f32[16,8]) -> f32[32,8] {
  %p.1 = f32[16,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[32,8]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={0}
}

%all-reduce-scatter (p.2: f32[32,8]) -> f32[16,8] {
  %p.2 = f32[32,8]{1,0} parameter(0)
  %all-reduce.9 = f32[32,8]{1,0} all-reduce(%p.2), channel_id=9, \
replica_groups=[2,2]<=[4], to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[16,8]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), \
dynamic_slice_sizes={16,8}
}

ENTRY %main (w: f32[16,8]) -> f32[16,8] {
  %w = f32[16,8]{1,0} parameter(0)
  %gathered = f32[32,8]{1,0} fusion(%w), kind=kCustom, calls=%start
  %again = f32[32,8]{1,0} fusion(%w), kind=kCustom, calls=%async_collective_fusion.1
  %collective-permute-start = (f32[16,8]{1,0}, f32[16,8]{1,0}, u32[], u32[]) \
collective-permute-start(%w), channel_id=11, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %moved = f32[16,8]{1,0} collective-permute-done(%collective-permute-start)
  ROOT %scattered = f32[16,8]{1,0} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter
}
"""

# Parts of a step on a GPU: a matmul of cuBLAS in bfloat16 with its bias, one in float32, cuDNN's
# attention forward and backward, a convolution and its gradients by cuDNN, a fusion, an exchange.
# Results in s8 and u8 are workspaces.
GPU = """\
HloModule jit_step, is_scheduled=true

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a.1, %b.1)
}

%fused (p.0: f32[4,8]) -> f32[4,8] {
  %p.0 = f32[4,8]{1,0} parameter(0)
  ROOT %negate.1 = f32[4,8]{1,0} negate(%p.0)
}

ENTRY %main (x: bf16[10,16], w: bf16[16,32], b: bf16[32], f: f32[4,16], g: f32[16,8], \
q: bf16[2,6,3,8], o: bf16[2,6,3,8], s: f32[2,3,6], i: bf16[2,8,8,3], k: bf16[4,2,2,3]) -> f32[4,8] {
  %x = bf16[10,16]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  %b = bf16[32]{0} parameter(2)
  %f = f32[4,16]{1,0} parameter(3)
  %g = f32[16,8]{1,0} parameter(4)
  %q = bf16[2,6,3,8]{3,2,1,0} parameter(5)
  %o = bf16[2,6,3,8]{3,2,1,0} parameter(6)
  %s = f32[2,3,6]{2,1,0} parameter(7)
  %i = bf16[2,8,8,3]{3,2,1,0} parameter(8)
  %k = bf16[4,2,2,3]{3,2,1,0} parameter(9)
  %narrow = (bf16[10,32]{1,0}, s8[4096]{0}) custom-call(%x, %w, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"alpha_real":1,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %wide = (f32[4,8]{1,0}, s8[4096]{0}) custom-call(%f, %g), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"alpha_real":1,\
"dot_dimension_numbers":{"lhs_contracting_dimensions": ["1"],"rhs_contracting_dimensions":["0"]}}}
  %attended = (bf16[2,3,6,8]{3,1,2,0}, f32[2,3,6]{2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"fmha_scale": 0.125}
  %gradients = (bf16[2,3,6,8]{3,1,2,0}, bf16[2,3,6,8]{3,1,2,0}, bf16[2,3,6,8]{3,1,2,0}, u8[9]{0}) \
custom-call(%q, %q, %q, %s, %o, /*index=5*/%o), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %map = (bf16[2,4,4,4]{3,2,1,0}, u8[0]{0}) custom-call(%i, %k), window={size=2x2 stride=2x2}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %out = bf16[2,4,4,4]{3,2,1,0} get-tuple-element(%map), index=0
  %to_images = (bf16[2,8,8,3]{3,2,1,0}, u8[0]{0}) custom-call(%out, %k), \
window={size=2x2 stride=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %to_kernel = (bf16[4,2,2,3]{3,2,1,0}, u8[0]{0}) custom-call(%i, %out), \
window={size=2x2 stride=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %product = f32[4,8]{1,0} get-tuple-element(%wide), index=0
  %negated = f32[4,8]{1,0} fusion(%product), kind=kLoop, calls=%fused
  %start = f32[4,8]{1,0} all-reduce-start(%negated), channel_id=1, replica_groups={{0,1}}, \
to_apply=%sum
  ROOT %done = f32[4,8]{1,0} all-reduce-done(%start)
}
"""
