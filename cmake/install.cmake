# Installs the library for find_package(pagegrad).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/pagegrad")

install(TARGETS pagegrad EXPORT pagegrad FILE_SET HEADERS)
install(EXPORT pagegrad NAMESPACE pagegrad:: FILE pagegradTargets.cmake DESTINATION ${package_dir})

configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/pagegradConfig.cmake.in"
                              pagegradConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(pagegradConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/pagegradConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/pagegradConfigVersion.cmake"
        DESTINATION ${package_dir})
