# forge_add_rule(name file): a file with an optimizer of one's own (forge/kernels/register_optimizer.h), as
#   name            a shared library: link it, or load it with `forge train --rule-library` or forge_optim.load_rule
#   ${name}_objects in the caller's scope, what it is made of, for a program that links forge_core statically
# The file is compiled for the host and, as the library's own rules are, once for each instruction set.

function(forge_add_rule name file)
  set(objects "")
  foreach(isa IN ITEMS host LISTS FORGE_ISAS)
    string(TOLOWER "${name}_${isa}" part)
    add_library(${part} OBJECT "${file}")
    target_link_libraries(${part} PRIVATE forge_config)
    target_compile_features(${part} PRIVATE cxx_std_20)
    target_compile_options(${part} PRIVATE -ffp-contract=off)
    # Hidden: structs of the same name may be in another rule's library.
    set_target_properties(${part} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
    if(NOT isa STREQUAL host)
      target_compile_definitions(${part} PRIVATE FORGE_ISA_${isa})
      target_link_libraries(${part} PRIVATE forge_highway)
    endif()
    list(APPEND objects $<TARGET_OBJECTS:${part}>)
  endforeach()
  set(${name}_objects "${objects}" PARENT_SCOPE)
  if(TARGET forge_torch)
    add_library(${name} SHARED ${objects})
    target_link_libraries(${name} PUBLIC forge_torch)
    # Kept, though a program that links it calls nothing in it.
    target_link_options(${name} INTERFACE LINKER:--no-as-needed)
  endif()
endfunction()
